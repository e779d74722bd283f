"""`Quantizer(model, method='KL', ...).compress()`: quantization in one line. The work is in `deepseek.quantization`."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from deepseek.errors import ConfigError, did_you_mean
from deepseek.quantization.calibrate import CalibrationData
from deepseek.quantization.config import Calibration, QuantConfig
from deepseek.quantization.quantize import quantize_with_report
from deepseek.quantization.report import QuantReport

_STATIC = get_args(Calibration)
_UNCALIBRATED = ("dynamic", "weight_only")
_LOW_BIT = ("weight_only", "gptq", "awq")


class Quantizer:
    """Quantizes one model.

    `method` (letter case ignored): `KL` (default), `minmax`, `moving_average`, `percentile`, `mse` or `best` for static
    ranges found that way, `dynamic` for ranges at run time, `weight_only` for float activations. `bit_width` is 8
    (int8), 16 (bfloat16, where `method` has no meaning), 4, 2 (ternary) or 1 (binary); below 8 `method` is
    `weight_only` (default) or, with 4, `gptq` or `awq`. Raises ConfigError for anything else.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | None = None,
        bit_width: int = 8,
        symmetric: bool = False,
        calibration_data: CalibrationData | None = None,
    ) -> None:
        self.model = model
        default = "kl" if bit_width >= 8 else "weight_only"
        self.config = _config((method or default).lower(), bit_width, "symmetric" if symmetric else "asymmetric")
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
    known = _LOW_BIT if bit_width in (4, 2, 1) else (*_STATIC, *_UNCALIBRATED)
    if method not in known:
        raise ConfigError("unknown method", found=f"{method!r} for {bit_width} bits", fix=did_you_mean(method, known))
    if bit_width == 16:
        return QuantConfig(weight_bits=16)
    if bit_width in (4, 2, 1):
        return QuantConfig(weight_bits=bit_width, algorithm="rtn" if method == "weight_only" else method)
    values: dict[str, Any] = {"weight_bits": bit_width, "method": method}
    if method in _STATIC:
        values |= {"method": "static", "calibration": method}
    if method != "weight_only":
        values["quant_scheme"] = scheme
    return QuantConfig(**values)
