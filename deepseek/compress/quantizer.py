"""`Quantizer(model, method='KL', ...).compress()`: quantization in one line. The work is in `deepseek.quantization`."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepseek.errors import ConfigError, did_you_mean
from deepseek.quantization.calibrate import CalibrationData
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.quantize import quantize_with_report
from deepseek.quantization.report import QuantReport

_STATIC = ("kl", "minmax", "percentile", "mse")
_UNCALIBRATED = ("dynamic", "weight_only")


class Quantizer:
    """Quantizes one model.

    `method` (letter case ignored): `KL`, `minmax`, `percentile` or `mse` for static ranges found that way, `dynamic`
    for ranges at run time, `weight_only` for float activations. `bit_width` is 8 (int8) or 16 (bfloat16, where
    `method` has no meaning). Raises ConfigError for anything else.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "KL",
        bit_width: int = 8,
        symmetric: bool = False,
        calibration_data: CalibrationData | None = None,
    ) -> None:
        self.model = model
        self.config = _config(method.lower(), bit_width, "symmetric" if symmetric else "asymmetric")
        self.calibration_data = calibration_data
        self.report: QuantReport | None = None

    def compress(self) -> nn.Module:
        """Return a quantized copy; `report` then holds what happened to each layer.

        Static methods without `calibration_data` use the model's `example_inputs`, with a warning. Raises as
        `quantize_model` does.
        """
        result, self.report = quantize_with_report(self.model, self.config, self.calibration_data)
        return result


def _config(method: str, bit_width: int, scheme: str) -> QuantConfig:
    if method not in (*_STATIC, *_UNCALIBRATED):
        raise ConfigError("unknown method", found=repr(method), fix=did_you_mean(method, (*_STATIC, *_UNCALIBRATED)))
    if bit_width == 16:
        return QuantConfig(weight_bits=16)
    values: dict[str, Any] = {"weight_bits": bit_width, "method": method}
    if method in _STATIC:
        values |= {"method": "static", "calibration": method}
    if method != "weight_only":
        values["quant_scheme"] = scheme
    return QuantConfig(**values)
