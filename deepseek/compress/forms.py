"""The number formats that a model is tried in: each a quantized copy, made after training.

Not here: formats that are learned (`recovery`), and measuring a form (`measure`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from deepseek.quantization.config import QuantConfig
from deepseek.quantization.quantize import quantize_with_report
from deepseek.quantization.report import QuantReport


def make_form(
    model: nn.Module, config: QuantConfig, calibration: Iterable[Any], batches: int = 16
) -> tuple[nn.Module, QuantReport]:
    """Return a quantized copy of `model` and what happened to each layer.

    Of `calibration` at most `batches` are read, and only where `config` needs them. Raises as `quantize_model` does.
    """
    data = itertools.islice(calibration, batches) if needs_data(config) else None
    return quantize_with_report(model, config, data)


def needs_data(config: QuantConfig) -> bool:
    """Return whether a form is made by looking at data."""
    if config.weight_bits == 16:
        return False
    parts = [config, *(config.for_layer(name) for name in config.layers)]
    return any(part.mode == "static" or part.algorithm != "rtn" or part.bias_correction for part in parts)


def quiet_form(
    model: nn.Module, config: QuantConfig, calibration: Iterable[Any], batches: int = 16
) -> tuple[nn.Module, QuantReport]:
    """Do what `make_form` does without its warnings: a search tries forms of which some leave much as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make_form(model, config, calibration, batches)
