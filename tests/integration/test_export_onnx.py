"""ONNX files run in ONNX Runtime against eager PyTorch, and exports that must not leave a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.errors import ExportError, ModelError, ParityError
from deepseek.export import OnnxRuntime, export_onnx
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.quantization import QuantConfig, quantize_model
from tests.toy_language_model import LONGEST, VOCABULARY, ToyLanguageModel

onnx = pytest.importorskip("onnx", reason="the extra [export] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")


def test_a_language_model_answers_alike_at_every_length(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ToyLanguageModel().train()
    report = export_onnx(model, tmp_path / "model.onnx", metadata={"task": "language_modeling"})
    assert model.training, "the model's own mode comes back"
    assert [check.shape for check in report.checks] == [(1, 1), (2, 12), (3, 11), (1, 12)]
    assert report.bytes == (tmp_path / "model.onnx").stat().st_size
    assert report.to_dict()["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    runtime = OnnxRuntime(tmp_path / "model.onnx", threads=1)
    assert runtime.signature.inputs[0] == ("input_ids", torch.int64, ("batch", "time"))
    assert runtime.signature.outputs[0] == ("logits", torch.float32, ("batch", "time", VOCABULARY))
    assert runtime.metadata["task"] == "language_modeling"
    model.eval()
    for batch, time in ((1, 2), (5, 7), (2, LONGEST)):
        ids = torch.randint(VOCABULARY, (batch, time))
        torch.testing.assert_close(runtime.run({"input_ids": ids})["logits"], model(ids).detach(), rtol=1e-4, atol=1e-4)
    assert capfd.readouterr() == ("", ""), "the exporter is silent"


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
def test_an_int8_model_keeps_its_integers(method: str, tmp_path: Path) -> None:
    model = ToyLanguageModel(d_model=128, num_layers=1)
    config = QuantConfig.model_validate({"method": method})
    quantized = quantize_model(model, config, [model.example_inputs(4)] if method == "static" else None)
    floating, integer = export_onnx(model, tmp_path / "f.onnx"), export_onnx(quantized, tmp_path / "q.onnx")
    assert integer.bytes < 0.5 * floating.bytes
    graph = onnx.load(tmp_path / "q.onnx").graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == (0 if method == "weight_only" else 5)  # four layers in the block, and the head
    large = [values for values in graph.initializer if len(values.dims) == 2 and min(values.dims) > 1]
    assert {values.data_type for values in large} == {onnx.TensorProto.INT8}
    ids = torch.randint(VOCABULARY, (2, 9))
    with torch.no_grad():
        wanted = quantized(ids)
    found = OnnxRuntime(tmp_path / "q.onnx").run({"input_ids": ids})["logits"]
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", ["float", "int8"])
def test_our_gpt_loaded_from_a_bundle(form: str, tmp_path: Path) -> None:
    model: nn.Module = GPT(GPTConfig(vocab_size=64, max_length=32, num_layers=1, d_model=32, num_heads=2))
    bundle.save(quantize_model(model) if form == "int8" else model, tmp_path / "bundle")
    loaded = bundle.load(tmp_path / "bundle", device="cpu").model
    report = export_onnx(loaded, tmp_path / "bundle" / "exports" / "model.onnx")
    assert report.checks[-1].shape == (1, 32), "checked at the model's full length"


def test_a_bf16_model_is_exported_in_fp32(tmp_path: Path) -> None:
    half = quantize_model(ToyLanguageModel(), QuantConfig(weight_bits=16))
    report = export_onnx(half, tmp_path / "model.onnx")
    assert report.tolerance == 1e-3
    assert next(half.parameters()).dtype == torch.bfloat16


def test_no_path_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    export_onnx(ToyLanguageModel(), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"toy_language_model" not in content
    assert b"site-packages" not in content


class Pair(NamedTuple):
    total: Tensor
    mask: Tensor


class TwoInputs(nn.Module):
    """Two inputs that share an axis, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, weights: Tensor) -> Pair:
        return Pair(self.layer(x) * weights.unsqueeze(-1), x.sum(-1) > 0)


def test_any_module_with_example_inputs(tmp_path: Path) -> None:
    example = {"x": torch.randn(2, 5, 4), "weights": torch.rand(2, 5)}
    axes = {"x": ("batch", "items", None), "weights": ("batch", "items")}
    checks = [{"batch": 1, "items": 1}, {"batch": 3, "items": 9}]
    report = export_onnx(TwoInputs(), tmp_path / "pair.onnx", example, axes=axes, checks=checks)
    assert [check.shape for check in report.checks] == [(1, 1), (3, 9)]
    signature = OnnxRuntime(tmp_path / "pair.onnx").signature
    assert [spec.name for spec in signature.outputs] == ["total", "mask"]
    assert signature.inputs[1].shape == ("batch", "items")


def test_an_image_model_with_a_changing_batch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    export_onnx(quantize_model(model), tmp_path / "image.onnx", torch.rand(1, 3, 8, 8))
    signature = OnnxRuntime(tmp_path / "image.onnx").signature
    assert signature.inputs[0].shape == ("batch", 3, 8, 8)


class Drifting(nn.Module):
    """Answers differently each time it is traced, which no file can."""

    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


def test_a_file_that_answers_differently_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"what was here before")
    with pytest.raises(ParityError, match=r"output 'output' differs .* at \{'batch': 1\}"):
        export_onnx(Drifting(), target, torch.ones(3, 4))
    assert target.read_bytes() == b"what was here before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Decides(nn.Module):
    """Lets Python decide on a tensor's value."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(3, 4)


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"test_export_onnx.py:\d+: if x.sum\(\) > 0:"):
        export_onnx(Decides(), target, torch.ones(3, 4))
    with pytest.raises(ExportError, match=r"axis 'batch' \(dimension 0 of 'x'\) can't change"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4))
    with pytest.raises(ExportError, match="no example inputs"):
        export_onnx(FixedBatch(), target)
    with pytest.raises(ExportError, match="unknown input 'y'"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={"y": ("batch",)})
    with pytest.raises(ExportError, match="axes of input 'x' do not fit"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={"x": ("batch",)})
    export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={})


def test_a_model_beyond_one_file_is_refused_before_any_work(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(40_000, 20_000)
    with pytest.raises(ExportError, match=r"3\.20 GB"):
        export_onnx(model, tmp_path / "model.onnx", torch.ones(1, 40_000))


def test_inputs_that_do_not_fit_are_named_before_the_runtime_sees_them(tmp_path: Path) -> None:
    export_onnx(ToyLanguageModel(), tmp_path / "model.onnx")
    runtime = OnnxRuntime(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="did you mean 'input_ids'"):
        runtime.run({"input_id": torch.zeros(1, 2, dtype=torch.int64)})
    with pytest.raises(ModelError, match="'input_ids' is missing"):
        runtime.run({})
    with pytest.raises(ModelError, match="torch.float32"):
        runtime.run({"input_ids": torch.zeros(1, 2)})


def test_a_damaged_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="can't load"):
        OnnxRuntime(tmp_path / "model.onnx")
