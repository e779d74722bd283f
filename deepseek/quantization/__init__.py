"""Quantization of trained models: one verb (`quantize_model`), one config, and a front that works on bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.quantization.config import QuantConfig as QuantConfig
    from deepseek.quantization.quantize import quantize_model as quantize_model
    from deepseek.quantization.quantize import quantize_with_report as quantize_with_report
    from deepseek.quantization.quantizer import Quantizer as Quantizer
    from deepseek.quantization.report import QuantReport as QuantReport

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "QuantConfig": "deepseek.quantization.config:QuantConfig",
        "QuantReport": "deepseek.quantization.report:QuantReport",
        "Quantizer": "deepseek.quantization.quantizer:Quantizer",
        "quantize_model": "deepseek.quantization.quantize:quantize_model",
        "quantize_with_report": "deepseek.quantization.quantize:quantize_with_report",
    },
)
