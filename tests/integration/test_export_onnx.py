"""ONNX files run in ONNX Runtime against eager PyTorch, and exports that must not leave a file."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.errors import ExportError, ModelError, ParityError, StorageError
from deepseek.export import OnnxRuntime, export_onnx, onnx_file
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
    operations = [node.op_type for node in graph.node]
    assert operations.count("MatMulInteger") == (5 if method == "dynamic" else 0)  # four in the block, and the head
    assert ("QuantizeLinear" in operations) == (method == "static")
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
    assert report.tolerance == 1e-4
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


class Eigenvalues(nn.Module):
    """An operation without a form in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(3, 4)


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"test_export_onnx.py:\d+: if x.sum\(\) > 0: \(in module '1'\)"):
        export_onnx(nn.Sequential(nn.Linear(4, 4), Decides()), target, torch.ones(3, 4))
    with pytest.raises(ExportError, match=r"(?s)no ONNX form.*aten._linalg_eigh.*in module '1'"):
        export_onnx(nn.Sequential(nn.Linear(4, 4), Eigenvalues()), target, torch.ones(3, 4, 4))
    with pytest.raises(ExportError, match=r"(?s)can't take its example inputs.*in module '0'.*'input': \(3, 5\)"):
        export_onnx(nn.Sequential(nn.Linear(4, 4)), target, torch.ones(3, 5))
    with pytest.raises(ExportError, match="calibration_data is for models with static int8 layers"):
        export_onnx(nn.Linear(4, 4), target, torch.ones(3, 4), calibration_data=[torch.ones(3, 4)])
    assert not target.exists()
    with pytest.raises(ExportError, match=r"axis 'batch' \(dimension 0 of 'x'\) can't change"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4))
    with pytest.raises(ExportError, match="no example inputs"):
        export_onnx(FixedBatch(), target)
    with pytest.raises(ExportError, match="unknown input 'y'"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={"y": ("batch",)})
    with pytest.raises(ExportError, match="axes of input 'x' do not fit"):
        export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={"x": ("batch",)})
    export_onnx(FixedBatch(), target, torch.ones(3, 4), axes={})


def test_weights_beyond_one_file_go_to_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 10_000)
    path = tmp_path / "model.onnx"
    for _ in range(2):  # the second export replaces both files
        model = ToyLanguageModel(num_layers=1)
        report = export_onnx(model, path)
        (weights,) = tmp_path.glob("model.onnx.*.data")
        assert len(list(tmp_path.iterdir())) == 2
        assert report.bytes == path.stat().st_size + weights.stat().st_size > 4 * 10_000 > 4 * path.stat().st_size / 10
        ids = torch.randint(VOCABULARY, (2, 5))
        with torch.no_grad():
            torch.testing.assert_close(OnnxRuntime(path).run({"input_ids": ids})["logits"], model(ids))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ParityError):
        export_onnx(Drifting(), path, torch.ones(3, 4))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    report = export_onnx(nn.Linear(2, 2), path, torch.ones(3, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "weights that nothing names are gone"


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(40_000, 20_000)
    with pytest.raises(ExportError, match="no weights"):
        export_onnx(model, tmp_path / "model.onnx", torch.ones(1, 40_000))


def test_a_place_that_takes_no_file_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "file" / "model.onnx", tmp_path / "folder"):
        with pytest.raises(StorageError, match="can't write"):
            export_onnx(Drifting(), wrong, torch.ones(3, 4))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="can't be written"):
        export_onnx(Drifting(), tmp_path / "model.onnx", torch.ones(3, 4))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"what was here before")

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="free some space"):
        export_onnx(nn.Linear(4, 2), target, torch.ones(3, 4))
    assert target.read_bytes() == b"what was here before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


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
