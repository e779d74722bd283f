"""Every runtime on one model: the same answers, the same typed errors, nothing left changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepseek as ds
from deepseek.errors import BundleError, ConfigError, ExportError, MissingExtraError, ModelError
from deepseek.export import export_onnx
from deepseek.export.runtimes import EagerRuntime, OnnxRuntime, open_runtime, runtimes_present
from deepseek.export.runtimes.as_model import as_model
from deepseek.export.runtimes.eager import half_copy
from deepseek.export.runtimes.runtime import Settings, torch_threads
from deepseek.models import build
from deepseek.quantization import quantize_model
from deepseek.tasks.build import build_task
from deepseek.tasks.task import evaluate

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("openvino", reason="the extra [export] is not installed")

TOYS = Path(__file__).parent.parent / "toys"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small classifier with its ONNX file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("forms") / "bundle"
    model = build(TOYS / "mlp-batch-norm.yaml").eval()
    ds.save(model, path, task="classification")
    export_onnx(model, path / "exports" / "model.onnx")
    return path


@pytest.fixture
def inputs(bundle: Path) -> dict[str, Tensor]:
    example: dict[str, Tensor] = ds.load(bundle, device="cpu").model.example_inputs(3)  # type: ignore[operator]
    return example


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_every_runtime_answers_like_the_model(
    name: str, precision: str | None, bundle: Path, inputs: dict[str, Tensor]
) -> None:
    model = ds.load(bundle, device="cpu").model
    if (name, precision) == ("onnxruntime", "bf16"):
        with pytest.raises(ExportError, match="can't turn float32 into bf16"):
            open_runtime(name, bundle, precision="bf16")
        return
    runtime = open_runtime(name, bundle, precision=precision, threads=1)  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = model(**inputs)
    found = next(iter(runtime.run(inputs).values()))
    assert found.dtype == torch.float32
    bound = 1e-5 if precision is None else 3e-2
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    assert (precision is None) == torch.allclose(found, wanted, rtol=1e-6, atol=1e-6), "bf16 really is used"
    with pytest.raises(ModelError, match="is missing"):
        runtime.run({})
    name_of_input = next(iter(inputs))
    with pytest.raises(ModelError, match="does not fit"):
        runtime.run({name_of_input: inputs[name_of_input][..., :2]})


def test_settings_do_not_change_the_answer(bundle: Path, inputs: dict[str, Tensor]) -> None:
    wanted = open_runtime("eager", bundle).run(inputs)
    for name, sizes in (("onnxruntime", {"batch": 3}), ("openvino", {f"{next(iter(inputs))}_0": 3})):
        runtime = open_runtime(name, bundle, settings=Settings(threads=1, spinning=False, sizes=sizes))
        assert runtime.signature.inputs[0].shape[0] == 3, "the batch is fixed"
        torch.testing.assert_close(list(runtime.run(inputs).values()), list(wanted.values()), rtol=1e-5, atol=1e-5)
    assert Settings.from_dict(Settings(2, True, {"batch": 3}, "bf16").to_dict()) == Settings(
        2, True, {"batch": 3}, "bf16"
    )


def test_names_and_what_this_machine_has(bundle: Path) -> None:
    present = runtimes_present()
    assert {"eager", "onnxruntime", "openvino"} <= set(present)
    assert ("onnxruntime:cuda" in present) == ("CUDAExecutionProvider" in onnxruntime.get_available_providers())
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        open_runtime("onnxruntim", bundle)
    with pytest.raises(ConfigError, match="unknown runtime"):
        open_runtime("eager:gpu", bundle)
    with pytest.raises(ExportError, match=r"no provider 'cda'(.|\n)*did you mean 'cuda'"):
        open_runtime("onnxruntime:cda", bundle)
    if "onnxruntime:tensorrt" not in present:
        with pytest.raises(ExportError, match=r"lacks the provider 'tensorrt'\n  found:  it has cpu"):
            open_runtime("onnxruntime:tensorrt", bundle)
    with pytest.raises(ExportError, match=r"no device 'abacus' here\n  found:  it has cpu"):
        open_runtime("openvino:abacus", bundle)
    with pytest.raises(ConfigError, match="reads a file"):
        open_runtime("openvino", nn.Linear(1, 1))


def test_files_that_are_missing_or_damaged(bundle: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime", "openvino", "static"):
        with pytest.raises(ExportError, match=f"no file for the runtime '{name}' in int8"):
            open_runtime(name, bundle, precision="int8")
        with pytest.raises(ExportError, match="no such file|no package"):
            open_runtime(name, tmp_path / "none.onnx")
    content = (bundle / "exports" / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(ExportError, match="can't load"):
            open_runtime(name, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="does not exist"):
        open_runtime("eager", tmp_path / "nowhere")


def test_a_missing_runtime_names_its_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"deepseek-framework\[export\]"):
        open_runtime("openvino", bundle)


def test_half_a_copy_shares_what_is_shared_and_leaves_the_model() -> None:
    model = build(TOYS / "gpt.yaml")
    half = half_copy(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert len(list(half.parameters())) == len(list(model.parameters())), "tied weights stay tied"
    assert model.training and not half.training


def test_integers_under_bf16_keep_their_scales() -> None:
    model = quantize_model(build(TOYS / "gpt.yaml"))
    example: dict[str, Tensor] = model.example_inputs(2)  # type: ignore[operator]
    axes = {"input_ids": ("batch", "time")}
    exact = EagerRuntime(model, example, axes).run(example)["logits"]
    half = EagerRuntime(model, example, axes, "bf16").run(example)["logits"]
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)
    assert {b.dtype for n, b in model.named_buffers() if n.endswith("scale")} == {torch.float32}


def test_a_task_measures_what_the_runtime_answers(bundle: Path, inputs: dict[str, Tensor]) -> None:
    model = ds.load(bundle, device="cpu").model
    runtime = OnnxRuntime(bundle / "exports" / "model.onnx", threads=1)
    batch = {**inputs, "labels": torch.tensor([0, 1, 0])}
    stand_in = as_model(model, runtime)
    task = build_task("classification")
    mine, theirs = evaluate(model, [batch], task), evaluate(stand_in, [batch], task)
    assert theirs == pytest.approx(mine, abs=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert evaluate(stand_in, [batch], task) == pytest.approx(theirs), "the file answered, not the weights"


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with pytest.raises(ZeroDivisionError), torch_threads(before + 2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
