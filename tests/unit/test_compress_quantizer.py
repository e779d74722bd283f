"""The short front for quantization, called as in the source documents."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepseek.compress import Quantizer
from deepseek.errors import ConfigError
from deepseek.nn.int8_linear import Int8Linear
from tests.toy_language_model import ToyLanguageModel


def test_the_same_call_as_in_the_source_documents() -> None:
    quantizer = Quantizer(ToyLanguageModel(), method="KL", bit_width=8, symmetric=False)
    with pytest.warns(UserWarning, match="no calibration data"):
        quantized = quantizer.compress()
    layer = quantized.get_submodule("blocks.0.up")
    assert isinstance(layer, Int8Linear)
    assert (layer.mode, layer.symmetric) == ("static", False)
    assert quantizer.report is not None and quantizer.report.bytes_after < quantizer.report.bytes_before


@pytest.mark.parametrize("method", ["KL", "minmax", "percentile", "mse", "dynamic", "weight_only"])
def test_every_method_gives_a_model_that_runs(method: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    data = torch.randn(64, 8)
    calibration = None if method in ("dynamic", "weight_only") else [data]
    quantized = Quantizer(model, method=method, calibration_data=calibration).compress()
    with torch.no_grad():
        torch.testing.assert_close(quantized(data), model(data), atol=0.05, rtol=0.05)


def test_sixteen_bits_is_bfloat16() -> None:
    assert Quantizer(nn.Linear(2, 2), bit_width=16).compress().get_parameter("weight").dtype == torch.bfloat16


def test_an_unknown_method_or_width_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'minmax'"):
        Quantizer(nn.Linear(2, 2), method="min-max")
    with pytest.raises(ConfigError, match="weight_bits is 3; wanted 8"):
        Quantizer(nn.Linear(2, 2), bit_width=3)
