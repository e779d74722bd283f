"""ViT3D: patches of three sides, a CT volume that fits, and checkpointing that saves memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models.factory import build
from deepseek.models.vit3d import ViT3D, ViT3DConfig
from deepseek.nn.patch_embedding import PatchEmbedding, resize_positions

TOY = ViT3DConfig(volume_size=[10, 16, 12], patch_size=[4, 8, 4], num_labels=3, num_layers=3, d_model=24, num_heads=2)


def test_a_ct_volume_is_8192_tokens() -> None:
    """512 x 512 x 128 voxels in patches of 16: shapes and counts of the real size, without its memory."""
    with torch.device("meta"):
        model = build("vit3d-b16")
        assert isinstance(model, ViT3D)
        assert model.config.grid == (8, 32, 32)
        assert model.config.gradient_checkpointing
        features = model.forward_features(torch.empty(1, 1, 128, 512, 512))
        assert features.shape == (1, 8192, 768)
        assert model(torch.empty(1, 1, 128, 512, 512)).shape == (1, 2)
    block = 12 * 768**2 + 13 * 768
    wanted = 16**3 * 768 + 768 + 8192 * 768 + 12 * block + 2 * 768 + 2 * 768 + 2
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_a_token_is_its_block_of_voxels() -> None:
    layer = PatchEmbedding(2, 5, (2, 3, 4), pad=True).double()
    volume = torch.randn(1, 2, 5, 6, 9, dtype=torch.float64)
    found = layer(volume)
    assert found.shape == (1, 3, 2, 3, 5)
    padded = torch.zeros(2, 6, 6, 12, dtype=torch.float64)
    padded[:, :5, :, :9] = volume[0]
    for place in [(0, 0, 0), (1, 1, 1), (2, 0, 2)]:
        d, h, w = place
        voxels = padded[:, 2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 4 * w : 4 * w + 4]
        wanted = (layer.projection.weight * voxels).sum(dim=(1, 2, 3, 4)) + layer.projection.bias
        torch.testing.assert_close(found[0, d, h, w], wanted)


def test_positions_between_cells_lie_between_their_values() -> None:
    ramp = torch.arange(4.0).reshape(4, 1, 1).expand(4, 2, 3).reshape(1, 24, 1)
    finer = resize_positions(ramp, (4, 2, 3), (8, 2, 3)).reshape(8, 2, 3)
    torch.testing.assert_close(finer[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert torch.equal(finer, finer[:, :1, :1].expand(8, 2, 3))
    assert resize_positions(ramp, (4, 2, 3), (4, 2, 3)) is ramp


def test_volumes_of_other_sizes_need_interpolated_positions() -> None:
    model = ViT3D(TOY.replace()).eval()  # a config of its own: it is changed below
    volume = torch.randn(1, 1, 7, 9, 21)
    with pytest.raises(ModelError, match="volume"):
        model(volume)
    same = torch.randn(2, 1, 10, 16, 12)
    before = model(same)
    model.config.interpolate_positions = True
    assert model(volume).isfinite().all()
    assert torch.equal(model(same), before)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 2, 10, 16, 12), torch.zeros(1, 10, 16, 12), torch.zeros(1, 1, 16, 10, 12)]
)
def test_wrong_volumes_are_named(wrong: Tensor) -> None:
    with pytest.raises(ModelError, match="volume has the wrong shape"):
        ViT3D(TOY)(wrong)


def test_raw_hounsfield_units_are_refused() -> None:
    with pytest.raises(ModelError, match="Hounsfield"):
        ViT3D(TOY)(torch.zeros(1, 1, 10, 16, 12, dtype=torch.int16))


def test_checkpointing_keeps_less_and_gives_equal_gradients() -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = ViT3D(TOY.replace(gradient_checkpointing=checkpointing)).train()
        held: dict[int, int] = {}

        def pack(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**model.example_inputs(2)).square().sum()
        kept.append(sum(held.values()))
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert kept[1] < 0.6 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"volume_size": [8, 8]}, "depth, height, width"),
        ({"patch_size": [0, 8, 8]}, "1 or more"),
        ({"num_heads": 7}, "num_heads 6|num_heads 8"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_would(values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        ViT3DConfig(**values)
