"""Pruning's settings, schedule, measures and refusals; what comes after it: caches, folding, int8, ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepseek as ds
from deepseek.compress.pruning import PruneConfig, prune_and_recover, prune_model
from deepseek.compress.pruning.choose import choose
from deepseek.compress.pruning.groups import Group, even_slice
from deepseek.compress.pruning.importance import scores
from deepseek.compress.pruning.parts import find_groups
from deepseek.errors import ConfigError, ModelError, QuantizationError
from deepseek.models import build
from deepseek.nn.fold_norm import fold_norms
from deepseek.nn.pruned_layers import apply, describe
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.tasks.image_classification import ImageClassification
from tests.toy_pruned import TOYS, toy

HALF = PruneConfig(round_to=1)


def images(count: int = 3, side: int = 33) -> list[dict[str, Tensor]]:
    return [{"pixel_values": torch.randn(4, 3, side, side), "labels": torch.randint(5, (4,))} for _ in range(count)]


def test_weak_channels_go_strong_ones_stay() -> None:
    model = toy("resnet")
    conv = model.get_submodule("stages.0.0.convs.0.conv")
    with torch.no_grad():
        for part in (conv.weight, model.get_parameter("stages.0.0.convs.1.conv.weight")):
            part.fill_(0.01)
        conv.weight[1], conv.weight[3] = 3.0, 2.0  # type: ignore[index, operator]
    small, _ = prune_model(model, HALF)
    kept = small.get_parameter("stages.0.0.convs.0.conv.weight")
    strongest = kept.flatten(1).mean(1)
    assert kept.shape[0] == 2
    torch.testing.assert_close(strongest, torch.tensor([3.0, 2.0]))


def test_sizes_are_those_of_torch_prunings_own_pruner() -> None:
    tp = pytest.importorskip("torch_pruning")
    model = toy("resnet")
    small, _ = prune_model(model, HALF)
    theirs = toy("resnet")
    pruner = tp.pruner.MetaPruner(
        theirs,
        theirs.example_inputs(2)["pixel_values"],  # type: ignore[operator]
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[theirs.classifier],
    )
    pruner.step()
    assert [tuple(p.shape) for p in small.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_round_to_steps_and_global_ranking() -> None:
    model = toy("yolov5")
    rounded, report = prune_model(model, PruneConfig(ratio=0.4, round_to=4))
    assert all(after % 4 == 0 or after == whole for whole, after in report.kept.values())
    steps: list[int] = []
    stepped, _ = prune_model(
        model, PruneConfig(round_to=1, iterative_steps=3), between=lambda m, step: steps.append(step)
    )
    at_once, _ = prune_model(model, HALF)
    assert steps == [1, 2]
    assert [p.shape for p in stepped.parameters()] == [p.shape for p in at_once.parameters()]
    anywhere, report = prune_model(model, PruneConfig(round_to=1, global_ranking=True))
    shares = {round(after / whole, 2) for whole, after in report.kept.values()}
    left = sum(after for _, after in report.kept.values()) / sum(whole for whole, _ in report.kept.values())
    assert len(shares) > 3 and left == pytest.approx(0.5, abs=0.02)


def test_a_global_bar_counts_units_of_all_groups() -> None:
    groups = [Group(name, "channels", 4, (even_slice("w", 0, 4, 4, "makes"),)) for name in "ab"]
    found = [torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([8.0, 7.0, 6.0, 5.0])]
    config = PruneConfig(round_to=1, global_ranking=True)
    removed = {group.name: units.tolist() for group, units in choose(groups, found, {"a": 4, "b": 4}, 0.25, config)}
    assert removed == {"a": [3, 2]}


def test_taylor_is_the_change_of_the_loss() -> None:
    """For a unit of a linear output the first-order term equals the finite difference of scaling it."""
    model = toy("mlp").eval()
    batches = [{"x": torch.randn(8, 1, 6, 6), "labels": torch.randint(5, (8,))}]

    class Task(ImageClassification):
        @staticmethod
        def answer(model: nn.Module, inputs: Tensor | dict[str, Tensor]) -> Tensor:  # type: ignore[override]
            return model(inputs["x"])  # type: ignore[no-any-return, index, call-overload]

    groups = find_groups(model, model.example_inputs(2), HALF, set(), {})  # type: ignore[operator]
    config = PruneConfig(importance="taylor", round_to=1)
    found = scores(model, groups, config, Task(), batches)
    last = groups[-1]
    part = next(part for part in last.slices if part.role == "reads")
    weight, step, wanted = model.get_parameter(part.tensor), 1e-3, torch.zeros(last.count)
    for unit in range(last.count):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                kept = weight[:, unit].clone()
                weight[:, unit] *= 1 + sign * step
                losses.append(F.cross_entropy(model(batches[0]["x"]), batches[0]["labels"]).double())
                weight[:, unit] = kept
        wanted[unit] = (losses[0] - losses[1]) / (2 * step)
    with_rows = [p for p in last.slices if p.role == "makes" and p.tensor.endswith("weight")]
    assert with_rows and found[-1].shape == wanted.shape
    # relu: scaling a unit's rows and its columns change the loss alike, but for the bias
    likeness = torch.corrcoef(torch.stack([found[-1], wanted.square()]))[0, 1]
    assert likeness > 0.5


def test_norm_scales_decide_where_asked() -> None:
    model = toy("resnet")
    norm = model.get_submodule("stages.0.0.convs.0.norm")
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, 5.0, 0.2, 4.0]))  # type: ignore[operator, union-attr]
    small, _ = prune_model(model, PruneConfig(round_to=1, importance="bn_scale"))
    torch.testing.assert_close(small.get_parameter("stages.0.0.convs.0.norm.weight").detach(), torch.tensor([5.0, 4.0]))
    with pytest.raises(ConfigError, match="bn_scale"):
        prune_model(toy("gpt"), PruneConfig(importance="bn_scale", round_to=1))


def test_recovery_brings_the_loss_down() -> None:
    torch.manual_seed(0)
    model, task, data = build(TOYS["resnet"]), ImageClassification(), images()
    settings = {"learning_rate": 1e-2, "compile": False, "progress": False, "precision": "fp32", "device": "cpu"}
    config = PruneConfig(round_to=1, iterative_steps=2)

    def loss(one: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(task.loss(one.eval(), batch).sum) for batch in data)

    plain, _ = prune_model(model, config)
    trained, report = prune_and_recover(model, config, task, data, steps=30, settings=settings)
    assert report.parameters[1] == sum(p.numel() for p in plain.parameters())
    assert loss(trained) < 0.8 * loss(plain)
    assert not trained.training


@pytest.mark.parametrize("name", ["gpt", "llama", "whisper", "t5"])
def test_pruned_heads_generate_with_their_cache(name: str) -> None:
    model = toy(name)
    small, _ = prune_model(model, PruneConfig(round_to=1, skip=["*blocks.0*"] if name == "gpt" else []))
    example = small.example_inputs(1)  # type: ignore[operator]
    made = small.generate(next(iter(example.values())), max_new_tokens=5)  # type: ignore[operator]
    if name in ("gpt", "llama"):
        again = example["input_ids"]
        for _ in range(5):
            again = torch.cat([again, small(again)[:, -1:].argmax(-1)], dim=1)
        greedy = small.generate(example["input_ids"], max_new_tokens=5, do_sample=False)  # type: ignore[operator]
        assert torch.equal(greedy, again)
    assert made.shape[0] == 1


def test_a_pruned_conformer_streams() -> None:
    small, _ = prune_model(toy("conformer_streaming"), HALF)
    state = small.encoder.blocks[0].attention.start(2)  # type: ignore[union-attr, operator, index]
    heads = small.encoder.blocks[0].attention.attention.num_heads  # type: ignore[union-attr, index]
    assert state[0].shape == (2, heads, 0, 8)


@pytest.mark.parametrize("name", ["resnet", "bert-classification"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pruned_then_folded_then_int8_saves_and_loads(name: str, tmp_path: Path) -> None:
    small, _ = prune_model(toy(name), HALF)
    example = small.example_inputs(2)  # type: ignore[operator]
    fold_norms(small, example)
    quantized = quantize_model(small, QuantConfig(method="static"), [example])
    ds.save(quantized, tmp_path / "bundle")
    loaded = ds.load(tmp_path / "bundle", device="cpu")
    loaded.verify()
    with torch.no_grad():
        assert torch.equal(loaded.model(**example), quantized(**example))
    with pytest.raises(QuantizationError, match="prune first"):
        prune_model(quantized, HALF)


@pytest.mark.parametrize("name", ["resnet", "llama"])
def test_pruned_models_export_to_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from deepseek.export.onnx_export import export_onnx

    small, _ = prune_model(toy(name), HALF)
    export_onnx(small, tmp_path / "small.onnx")
    weights = sum(weight.numel() for weight in toy(name).parameters())
    assert (tmp_path / "small.onnx").stat().st_size < 4 * weights + 60_000


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        PruneConfig(ratio=ratio)


def test_skipped_modules_keep_their_sizes_and_a_useless_pattern_warns() -> None:
    model = toy("resnet")
    with pytest.warns(UserWarning, match="'nowhere.\\*' matches no module"):
        small, report = prune_model(model, PruneConfig(round_to=1, skip=["stages.0.*", "nowhere.*"]))
    for name, weight in model.get_submodule("stages.0").named_parameters():
        if "shortcut" not in name:
            assert small.get_parameter(f"stages.0.{name}").shape[0] == weight.shape[0], name
    assert not any(name.startswith("stages.0.") for name in report.kept) and report.kept


def test_nothing_to_prune_is_an_error_that_says_why() -> None:
    with pytest.raises(ConfigError, match="nothing was pruned"):
        prune_model(build(TOYS["gpt"].with_name("lstm.yaml")), HALF)
    with pytest.raises(ConfigError, match="needs gradients"):
        prune_model(toy("mlp"), PruneConfig(importance="taylor"))


class Detached(nn.Module):
    """A model that autograd can't see through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.last(self.first(x))
        return y


class Mixing(nn.Module):
    """A softmax over the channels: a channel that is not read still counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).softmax(-1))
        return y


class Fixed(nn.Module):
    """A view with a number written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).view(-1, 8))
        return y


@pytest.mark.parametrize(("kind", "words"), [(Detached, "'last'"), (Mixing, "'last'"), (Fixed, "'Fixed'")])
def test_a_model_that_cant_be_pruned_soundly_names_the_module(kind: type[nn.Module], words: str) -> None:
    torch.manual_seed(0)
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        prune_model(model, HALF, {"x": torch.randn(3, 4)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_any_model_of_torch_can_be_pruned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    frozen = model[4].weight.requires_grad_(False)
    small, report = prune_model(model, HALF, {"input": torch.randn(2, 3, 8, 8)})
    assert small[0].out_channels == 4 and small[4].in_features == 4 * 36
    assert not small[4].weight.requires_grad and frozen.shape == (5, 288) and small[0].weight.requires_grad
    assert report.to_dict()["kept"] == {"0": [8, 4]}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"shapes": {"token_embedding.weight": [999, 16]}}, "can't be pruned to this shape"),
        ({"shapes": {"token_embedding.weight": [3]}}, "can't be pruned to this shape"),
        ({"shapes": {"nowhere.weight": [3]}}, "no module"),
        ({"attributes": {"blocks.0.attention": {"num_heads": 9}}}, "num_heads"),
        ({"attributes": {"blocks.0.attention": {"forward": 1}}}, "forward"),
        ({"attributes": {"blocks.0.attention": {"dropout": 0}}}, "dropout"),
        ({"layers": {"blocks": [1, 0]}}, "layers to keep"),
        ({"layers": {"blocks": []}}, "layers to keep"),
        ({"layers": {"blocks.0": [0]}}, "layers to keep"),
        ({"other": {}}, "pruned sizes"),
    ],
)
def test_a_forged_record_is_refused(spec: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        apply(build(TOYS["gpt"]), spec)


def test_the_record_is_plain_and_builds_the_same_sizes_on_meta() -> None:
    assert describe(build(TOYS["gpt"])) == {}
    small, _ = prune_model(toy("gpt"), PruneConfig(what=["heads", "ffn", "layers"], round_to=1))
    with torch.device("meta"):
        again = build(TOYS["gpt"])
        apply(again, describe(small))
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
    assert describe(again) == describe(small)
