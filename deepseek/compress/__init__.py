"""Smaller and faster models: the compress stage of a recipe, and a short front for quantization alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.compress.config import CompressConfig as CompressConfig
    from deepseek.compress.quantizer import Quantizer as Quantizer
    from deepseek.compress.stage import CompressReport as CompressReport
    from deepseek.compress.stage import compress_bundle as compress_bundle

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CompressConfig": "deepseek.compress.config:CompressConfig",
        "CompressReport": "deepseek.compress.stage:CompressReport",
        "Quantizer": "deepseek.compress.quantizer:Quantizer",
        "compress_bundle": "deepseek.compress.stage:compress_bundle",
    },
)
