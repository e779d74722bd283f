"""U-Net++: the paper's nodes by its recursion, its number of weights, pruning, deep supervision, a blob learnt."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.evaluate.segmentation import evaluate_segmentation
from deepseek.models import build
from deepseek.models.unet_plus_plus import UNetPlusPlus, UNetPlusPlusConfig, UNetPlusPlusOutput
from deepseek.tasks.segmentation import Segmentation


def toy(**changes: object) -> UNetPlusPlus:
    sizes: dict[str, object] = {"num_labels": 2, "channels": [4, 6, 8, 10], "num_channels": 2}
    return UNetPlusPlus(UNetPlusPlusConfig(**{**sizes, **changes}))


def volume(model: UNetPlusPlus, side: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, model.config.num_channels, *[side] * model.config.dims)


def test_the_papers_sizes_give_the_papers_number_of_weights() -> None:
    """9.04 million: table 2 of the paper. Batch norm swaps the convolutions' biases for twice as many weights."""
    with torch.device("meta"):
        plain = build({"name": "unet-plus-plus-2d", "norm": "none"})
        normed = build("unet-plus-plus-2d")
        deep = build("unet-plus-plus-3d")
    weights = [sum(p.numel() for p in model.parameters()) for model in (plain, normed, deep)]
    assert round(weights[0] / 1e6, 2) == 9.04
    bias = sum(p.numel() for name, p in plain.named_parameters() if "conv" in name and name.endswith("bias"))
    assert weights[1] == weights[0] + bias
    assert weights[2] == sum(p.numel() for p in build("unet-plus-plus-3d").parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_nodes_are_those_of_the_papers_recursion(dims: int) -> None:
    model = toy(dims=dims).eval()
    x = volume(model)
    pool = F.max_pool2d if dims == 2 else F.max_pool3d

    @functools.cache
    def node(i: int, j: int) -> Tensor:
        if j == 0:
            inputs = x if i == 0 else pool(node(i - 1, 0), 2)
        else:
            inputs = torch.cat([node(i, k) for k in range(j)] + [model.ups[f"{i}_{j}"](node(i + 1, j - 1))], dim=1)
        return model.nodes[f"{i}_{j}"](inputs)

    with torch.no_grad():
        wanted = torch.stack([model.heads[str(j)](node(0, j)) for j in (1, 2, 3)], dim=1)
        found = model(x, all_heads=True)
        assert isinstance(found, UNetPlusPlusOutput)
        torch.testing.assert_close(found.heads, wanted)
        torch.testing.assert_close(found.logits, wanted.mean(1))
        torch.testing.assert_close(model(x), wanted[:, -1])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_pruned_answer_runs_only_what_it_needs_and_is_the_heads_own(level: int) -> None:
    model = toy().eval()
    x, ran = volume(model), []
    for name, block in model.nodes.items():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        heads = model(x, all_heads=True).heads
        ran.clear()
        found = model(x, prune_level=level)
        assert sorted(ran) == sorted(f"{i}_{j}" for i in range(level + 1) for j in range(level + 1 - i))
        torch.testing.assert_close(found, heads[:, level - 1])
        model.config.prune_level = level
        torch.testing.assert_close(model(x), found)
        small = model.pruned(level)
        torch.testing.assert_close(small(x), found)
        assert model(x, all_heads=True).heads.shape[1] == level
    assert small.config.levels == level and not small.training
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())
    assert small.heads["1"].weight is not model.heads["1"].weight


def test_training_answers_with_every_head_and_trains_every_weight() -> None:
    model = toy(prune_level=1).train()
    output = model(volume(model))
    assert isinstance(output, UNetPlusPlusOutput) and output.heads.shape == (2, 3, 2, 16, 16)
    output.heads.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    single = toy(deep_supervision=False).train()
    answer = single(volume(single))
    assert isinstance(answer, Tensor) and list(single.heads) == ["3"]
    answer.square().sum().backward()
    assert [name for name, p in single.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("space", [(17, 9), (1, 1), (5, 6, 11)])
def test_any_size_will_do(norm: str, space: tuple[int, ...]) -> None:
    model = toy(dims=len(space), norm=norm).eval()
    answer = model(torch.rand(1, 2, *space))
    assert answer.shape == (1, 2, *space) and bool(answer.isfinite().all())
    output = model.train()(torch.rand(1, 2, *space))
    assert output.heads.shape == (1, 3, 2, *space) and bool(output.heads.isfinite().all())


def test_padding_does_not_move_an_image() -> None:
    """A size that fits and the same image cut by a row differ at the far edge alone, within the view of a pixel."""
    model = toy(channels=[4, 6], norm="none").eval()
    x = torch.rand(1, 2, 32, 32)
    torch.testing.assert_close(model(x[:, :, :31])[:, :, :20], model(x)[:, :, :20])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prune_level": 5}, "nearest that fits: prune_level 4"),
        ({"prune_level": 2, "deep_supervision": False}, "deep_supervision true"),
        ({"channels": [8, 0]}, r"nearest that fits: \[8, 1\]"),
        ({"channels": [8]}, "at least 2"),
        ({"dims": 4}, "2 or 3"),
        ({"norm": "layer"}, "'instance'"),
        ({"depth": 3}, "unknown key 'depth'"),
    ],
)
def test_sizes_that_make_no_model_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UNetPlusPlusConfig(**values)


def test_wrong_inputs_and_levels_without_a_head_are_refused() -> None:
    model = toy()
    for wrong in (torch.rand(1, 3, 16, 16), torch.rand(2, 16, 16), torch.rand(1, 2, 8, 8, 8)):
        with pytest.raises(ModelError, match="pixel_values"):
            model(wrong)
    with pytest.raises(ModelError, match=r"one of \[1, 2, 3\]"):
        model(volume(model), prune_level=4)
    single = toy(deep_supervision=False)
    with pytest.raises(ModelError, match="deep_supervision: true"):
        single.pruned(1)


def blobs(dims: int, side: int) -> dict[str, Tensor]:
    """Two noisy images of a bright ball in the dark, and where it is."""
    axes = torch.meshgrid(*[torch.arange(side).float()] * dims, indexing="ij")
    balls = [sum((axis - centre * side).square() for axis in axes) < (side / 4) ** 2 for centre in (0.4, 0.6)]
    masks = torch.stack([torch.as_tensor(ball) for ball in balls]).long()
    return {"pixel_values": (masks + 0.3 * torch.randn(masks.shape))[:, None], "masks": masks}


@pytest.mark.parametrize(("dims", "side", "norm"), [(2, 32, "batch"), (3, 12, "instance")])
def test_a_small_model_learns_a_blob(dims: int, side: int, norm: str) -> None:
    model = toy(dims=dims, num_channels=1, num_labels=1, channels=[6, 8, 10], norm=norm).train()
    batch, task = blobs(dims, side), Segmentation()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss_sum(model, batch).backward()
        optimizer.step()
    for level in (1, 2):
        model.config.prune_level = level
        assert evaluate_segmentation(model, [batch]).report()["dice"] > 0.9


def test_the_loss_of_the_task_is_the_mean_over_the_heads_and_is_followed_without_a_break() -> None:
    model, task = toy(norm="none").train(), Segmentation()
    batch = {"pixel_values": volume(model), "masks": torch.randint(2, (2, 16, 16))}
    heads = model(batch["pixel_values"]).heads
    alone = [task.loss_sum(lambda _, logits=heads[:, j]: logits, batch) for j in range(3)]  # type: ignore[arg-type]
    torch.testing.assert_close(task.loss_sum(model, batch), torch.stack(alone).mean())
    captured = torch.compile(task.loss_sum, fullgraph=True, backend="eager")(model, batch)
    torch.testing.assert_close(captured, torch.stack(alone).mean())
