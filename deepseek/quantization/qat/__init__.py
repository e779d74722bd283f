"""Quantization-aware training: `prepare_qat`, any loop, `convert_qat`; in one: `deepseek.compress.train_qat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.quantization.qat.convert import convert_qat as convert_qat
    from deepseek.quantization.qat.prepare import prepare_qat as prepare_qat

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "convert_qat": "deepseek.quantization.qat.convert:convert_qat",
        "prepare_qat": "deepseek.quantization.qat.prepare:prepare_qat",
    },
)
