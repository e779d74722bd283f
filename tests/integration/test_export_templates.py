"""Every template as an ONNX file and as OpenVINO IR: equal to PyTorch at sizes that were not the example's."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from deepseek.export import OnnxRuntime, export_onnx
from deepseek.export.openvino_export import export_openvino
from deepseek.models.factory import build

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("openvino", reason="the extra [export] is not installed")

ROOT = Path(__file__).parent.parent
TOYS = {path.stem: path for path in sorted((ROOT / "toys").glob("*.yaml"))}
BATCH_ALONE: set[str] = {"lstm"}
"""Templates that take ids of any length, though their graph is written out for one."""
MACHINE = {str(ROOT.parent), str(Path(torch.__file__).parent), str(Path.home()), tempfile.gettempdir()}


def noisy(toy: str) -> nn.Module:
    """Return a toy whose every weight has moved: layers that begin as zero say something too."""
    torch.manual_seed(11)
    model = build(TOYS[toy])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.eval()


@pytest.mark.parametrize("toy", TOYS)
def test_a_template_answers_alike_in_onnx_runtime_and_openvino(toy: str, tmp_path: Path) -> None:
    model = noisy(toy)
    path = tmp_path / "exports" / "model.onnx"
    report = export_onnx(model, path)
    assert report.tolerance == 1e-4 and all(check.max_abs_error <= 1e-3 for check in report.checks)
    inputs = model.example_inputs(2)  # type: ignore[operator]
    assert {axis for axes in report.axes.values() for axis in axes if axis} == free_axes(toy, inputs)
    assert {check.shape[0] for check in report.checks} >= {1, 2, 3}, "several batches"

    example = {name: tensor for name, tensor in inputs.items()}
    ir = export_openvino(path, tmp_path / "openvino", example, axes=report.axes)
    assert len(ir.checks) >= 3

    onnx.checker.check_model(str(path), full_check=True)
    for file in (path, *ir.path.parent.iterdir()):
        content = file.read_bytes()
        assert not [place for place in (*MACHINE, socket.gethostname()) if len(place) > 3 and place.encode() in content]
        assert b"pkg.torch" not in content
    graph = onnx.load(path).graph
    assert not [node.op_type for node in graph.node if node.op_type in ("Identity", "Dropout", "BatchNormalization")]
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert {values.name for values in graph.initializer} <= read, "no weight that nothing reads"


def free_axes(toy: str, inputs: dict[str, torch.Tensor]) -> set[str]:
    """Return what should be free: the batch, and each length of text or sound."""
    axes = {"batch"}
    if toy in BATCH_ALONE:
        return axes
    axes |= {"time"} if {"input_ids", "atomic_numbers"} & set(inputs) else set()
    axes |= {"decoder_time"} if "decoder_input_ids" in inputs else set()
    return axes | ({"frames"} if "input_features" in inputs else set())


def test_what_the_signature_says_is_the_model_s(tmp_path: Path) -> None:
    report = export_onnx(noisy("whisper"), tmp_path / "model.onnx")
    assert report.axes == {"input_features": ("batch", None, "frames"), "decoder_input_ids": ("batch", "decoder_time")}
    assert OnnxRuntime(report.path).signature.outputs[0].shape == ("batch", "decoder_time", 97)
