"""Generation models with their cache as inputs and outputs: greedy text equals the model's own, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepseek.errors import ExportError, ModelError, StorageError
from deepseek.export import OnnxRuntime
from deepseek.export.generation_export import export_generation
from deepseek.export.generation_run import ExportedGenerator
from tests.integration.test_export_templates import noisy

pytest.importorskip("onnx", reason="the extra [export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("openvino", reason="the extra [export] is not installed")


def strong(toy: str) -> Any:
    """Return a toy whose answers depend on what it read."""
    model = noisy(toy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


@pytest.mark.parametrize(
    ("toy", "format"),
    [("gpt", "onnx"), ("llama", "openvino"), ("deepseek_moe", "onnx"), ("t5", "onnx"), ("whisper", "openvino")],
)
def test_greedy_text_equals_the_model_s(toy: str, format: Any, tmp_path: Path) -> None:
    model = strong(toy)
    report = export_generation(model, tmp_path / "steps", format=format)
    assert {check.max_abs_error <= 1e-3 for check in report.checks} == {True}
    generator = ExportedGenerator(report.path, threads=1)
    inputs = next(iter(model.example_inputs(2).values()))
    prompt = inputs if inputs.is_floating_point() else inputs[:, :5]
    wanted = model.generate(prompt, max_new_tokens=9)
    assert len(set(wanted[0].tolist())) > 2, "a text, not one token again and again"
    assert torch.equal(generator.generate(prompt, max_new_tokens=9), wanted)
    sampled = {"do_sample": True, "seed": 3, "temperature": 0.7, "max_new_tokens": 6}
    assert torch.equal(generator.generate(prompt, **sampled), model.generate(prompt, **sampled))


def test_names_and_sizes_are_the_field_s(tmp_path: Path) -> None:
    export_generation(strong("llama"), tmp_path / "steps")
    signature = OnnxRuntime(tmp_path / "steps" / "model.onnx").signature
    assert [spec.name for spec in signature.inputs] == [
        "input_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert signature.inputs[1].shape == ("batch", 2, "past", 8)
    assert [spec.name for spec in signature.outputs][:2] == ["logits", "present.0.key"]
    generator = ExportedGenerator(tmp_path / "steps")
    with pytest.raises(ModelError, match="max_length = 64"):
        generator.generate(torch.zeros(1, 60, dtype=torch.int64), max_new_tokens=5)


def test_what_has_no_such_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="can't be exported for generation"):
        export_generation(nn.Linear(2, 2), tmp_path / "steps")
    with pytest.raises(ExportError, match="another form"):
        export_generation(noisy("lstm"), tmp_path / "steps")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("kept")
    with pytest.raises(StorageError, match="dear.txt"):
        export_generation(noisy("gpt"), tmp_path / "letters")
    with pytest.raises(ExportError, match="no exported generation model"):
        ExportedGenerator(tmp_path / "letters")
    assert not (tmp_path / "steps").exists() and (tmp_path / "letters" / "dear.txt").read_text() == "kept"
