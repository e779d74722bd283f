"""Our Swin against `SwinForImageClassification` of transformers, window attention against brute force, the sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from deepseek.errors import ConfigError, ModelError
from deepseek.models.factory import build
from deepseek.models.swin import Swin, SwinConfig
from deepseek.nn.window_attention import WindowAttention, cut_windows, join_windows, window_layout
from tests.parity.helpers import assert_near, check_family, noisy

transformers = pytest.importorskip("transformers")

# side of the windows, height and width of the image: the second stage's map has at least one window
CASES: dict[str, tuple[int, tuple[int, int]]] = {
    "whole windows": (3, (24, 24)),
    "padding everywhere": (4, (25, 39)),
    "even window, one window in the second stage": (4, (16, 16)),
    "odd window, one window high": (5, (17, 34)),
}


def theirs(window: int, **sizes: Any) -> Any:
    torch.manual_seed(window)
    config = transformers.SwinConfig(
        **{
            "image_size": 24,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 3],
            "num_heads": [2, 4],
            "mlp_ratio": 2.5,
            "num_labels": 6,
            "window_size": window,
            **sizes,
        }
    )
    return noisy(transformers.SwinForImageClassification(config), scale=0.1)


def in_file(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the file, which are older than those in memory."""
    renames = (
        (".attention.q_proj", ".attention.self.query"),
        (".attention.k_proj", ".attention.self.key"),
        (".attention.v_proj", ".attention.self.value"),
        (".attention.relative_position_bias.relative", ".attention.self.relative"),
        (".attention.o_proj", ".attention.output.dense"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
    )
    found = {}
    for name, tensor in tensors.items():
        for new, old in renames:
            name = name.replace(new, old)
        found[name] = tensor
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("qkv_bias", [True, False], ids=["bias", "no bias"])
def test_equal_weights_give_equal_logits_and_gradients(
    case: tuple[int, tuple[int, int]], qkv_bias: bool, tmp_path: Path
) -> None:
    window, size = case
    check_family(
        theirs(window, qkv_bias=qkv_bias), {"pixel_values": torch.randn(2, 3, *size)}, tmp_path, in_file=in_file
    )


def test_features_are_their_last_hidden_state(tmp_path: Path) -> None:
    model = theirs(3)
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 26, 30)
    ours = Swin.from_pretrained(tmp_path).forward_features(pixels)
    assert ours.shape == (2, 7, 8, 16)
    assert_near(ours.flatten(1, 2), model.swin(pixels).last_hidden_state, 1e-4)


def test_a_small_image_does_not_change_the_answer_for_a_large_one() -> None:
    model = Swin(SwinConfig(patch_size=2, width=8, depths=[2], num_heads=[2], window_size=4, num_labels=3)).eval()
    large = torch.randn(1, 3, 24, 24)
    before = model(large)
    assert model(torch.randn(1, 3, 5, 3)).isfinite().all()  # less than a window
    assert torch.equal(model(large), before)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 9), (2, 3)])
def test_shifted_windows_equal_a_loop_over_pairs_of_places(size: tuple[int, int]) -> None:
    """A place sees those of its window, and in a shifted block none from the map's other edge."""
    side, heads, channels = 4, 2, 6
    layer = WindowAttention(channels, heads, side, shifted=True, qkv_bias=True, dropout=0.0).double()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(1, *size, channels, dtype=torch.float64)
    layout = window_layout(size, side, x.device)
    found = layer(x, layout)

    tall, broad = layout.window
    height, width = tall * layout.counts[0], broad * layout.counts[1]
    full = torch.zeros(height, width, channels, dtype=torch.float64)
    full[: size[0], : size[1]] = x[0]
    shift = side // 2 if min(size) > side else 0
    query, key, value = layer.qkv(full).unflatten(-1, (3, heads, -1)).unbind(2)

    def cell(row: int, column: int) -> tuple[int, ...]:
        # its window after the shift, and whether it came round from the other edge
        down, right = (row - shift) % height, (column - shift) % width
        return down // tall, right // broad, int(row < shift), int(column < shift)

    places = [(row, column) for row in range(height) for column in range(width)]
    for row, column in places[:: max(1, len(places) // 30)]:
        if row >= size[0] or column >= size[1]:
            continue
        seen = [place for place in places if cell(*place) == cell(row, column)]
        out = []
        for head in range(heads):
            scores = []
            for other in seen:
                # places keep their distance: none of these pairs is torn apart by the shift
                index = (row - other[0] + side - 1) * (2 * side - 1) + column - other[1] + side - 1
                score = query[row, column, head] @ key[*other, head] / (channels // heads) ** 0.5
                scores.append(score + layer.bias_table[index, head])
            weights = torch.stack(scores).softmax(0)
            out.append(sum(w * value[*other, head] for w, other in zip(weights, seen, strict=True)))
        torch.testing.assert_close(found[0, row, column], layer.out(torch.cat(out)))


def test_one_program_is_compiled_for_all_sizes() -> None:
    torch.compiler.reset()
    model = Swin(SwinConfig(patch_size=2, width=4, depths=[2, 1], num_heads=[1, 2], window_size=3, num_labels=3)).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in ((16, 26), (19, 30), (36, 24)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(pixels), model(pixels), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


def test_windows_are_joined_as_they_were_cut() -> None:
    x = torch.randn(2, 6, 8, 3)
    windows = cut_windows(x, (3, 2), (2, 4))
    assert windows.shape == (2, 8, 6, 3)
    assert torch.equal(windows[1, 5].view(3, 2, 3), x[1, 3:6, 2:4])
    assert torch.equal(join_windows(windows, (3, 2), (2, 4)), x)


@pytest.mark.parametrize(
    ("size", "published"), [("swin-tiny", 28_288_354), ("swin-small", 49_606_258), ("swin-base", 87_768_224)]
)
def test_published_parameter_counts(size: str, published: int) -> None:
    with torch.device("meta"):
        model = build(size)
    assert sum(p.numel() for p in model.parameters()) == published


def test_what_a_checkpoint_may_not_ask_for(tmp_path: Path) -> None:
    theirs(3, use_absolute_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="absolute"):
        Swin.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"num_heads": [3, 6]}, "4 numbers"),
        ({"num_heads": [3, 6, 12, 23]}, "num_heads 24"),
        ({"depths": [2, 2, 0, 2]}, "1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_would(values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        SwinConfig(**values)
