"""`deepseek.quantization.Quantizer` on saved models, called as in the source documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek import bundle
from deepseek.errors import BundleError, QuantizationError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization import Quantizer


def tiny() -> GPT:
    return GPT(GPTConfig(vocab_size=64, max_length=16, num_layers=1, d_model=32, num_heads=2))


def test_the_same_calls_as_in_the_source_documents(tmp_path: Path) -> None:
    model = tiny()
    bundle.save(model, tmp_path / "m.pt")
    quantizer = Quantizer(model_path=tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="no calibration data"):
        quantizer.apply_static_quant()
    quantizer.save(tmp_path / "q.pt")
    assert (tmp_path / "q.pt").stat().st_size < (tmp_path / "m.pt").stat().st_size
    loaded = bundle.load(tmp_path / "q.pt", device="cpu").model
    layer = loaded.get_submodule("blocks.0.feed_forward.up")
    assert isinstance(layer, Int8Linear) and layer.mode == "static"
    inputs = model.example_inputs(2)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs), quantizer.model(**inputs))
        torch.testing.assert_close(loaded(**inputs), model.eval()(**inputs), atol=0.05, rtol=0.05)


def test_each_call_starts_from_the_original(tmp_path: Path) -> None:
    model = tiny()
    quantizer = Quantizer(model=model)
    assert quantizer.model is model
    first = quantizer.apply_dynamic_quant()
    second = quantizer.apply_dynamic_quant()
    inputs = model.example_inputs(2)
    assert first is not second and quantizer.model is second
    assert torch.equal(first(**inputs), second(**inputs))
    quantizer.save(tmp_path / "bundle")
    bundle.load(tmp_path / "bundle", device="cpu").verify()
    assert (tmp_path / "bundle" / "report.json").is_file()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="neither"):
        Quantizer()
    with pytest.raises(QuantizationError, match="both"):
        Quantizer(model_path=tmp_path, model=tiny())
    with pytest.raises(QuantizationError, match="not quantized yet"):
        Quantizer(model=tiny()).save(tmp_path / "q.pt")
    with pytest.raises(BundleError, match="does not exist"):
        Quantizer(model_path=tmp_path / "nowhere.pt")
