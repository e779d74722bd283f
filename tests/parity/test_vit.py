"""Our ViT against `ViTForImageClassification` of transformers, and the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models.factory import build
from deepseek.models.vit import ViT, ViTConfig
from tests.parity.helpers import assert_near, check_family, noisy

transformers = pytest.importorskip("transformers")

SIZES: dict[str, dict[str, Any]] = {
    "square": {"image_size": 24, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3},
    "wide image and patch, no bias": {
        "image_size": [12, 30],
        "patch_size": [4, 10],
        "hidden_size": 16,
        "num_attention_heads": 1,
        "qkv_bias": False,
        "num_channels": 1,
    },
    "pixels left over": {"image_size": 23, "patch_size": 5, "hidden_size": 32, "num_attention_heads": 8},
}


def theirs(seed: int = 0, **sizes: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        **{"num_hidden_layers": 3, "intermediate_size": 40, "num_labels": 7, "layer_norm_eps": 1e-6, **sizes}
    )
    return noisy(transformers.ViTForImageClassification(config))


def in_file(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the file, which are older than those in memory."""
    renames = (
        ("vit.layers.", "vit.encoder.layer."),
        (".attention.q_proj", ".attention.attention.query"),
        (".attention.k_proj", ".attention.attention.key"),
        (".attention.v_proj", ".attention.attention.value"),
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


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_equal_weights_give_equal_logits_and_gradients(sizes: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(**sizes)
    height, width = torch.Size(
        [sizes["image_size"]] * 2 if isinstance(sizes["image_size"], int) else sizes["image_size"]
    )
    pixels = torch.randn(3, sizes.get("num_channels", 3), height, width)
    check_family(model, {"pixel_values": pixels}, tmp_path, in_file=in_file)


@pytest.mark.parametrize("size", [(24, 40), (17, 32), (8, 8), (24, 24)])
def test_positions_are_interpolated_as_theirs(size: tuple[int, int], tmp_path: Path) -> None:
    model = theirs(**SIZES["square"])
    pixels = torch.randn(2, 3, *size)
    check_family(
        model,
        {"pixel_values": pixels, "interpolate_pos_encoding": True},
        tmp_path,
        our_inputs={"pixel_values": pixels},
        in_file=in_file,
        changes={"interpolate_positions": True},
    )


def test_features_are_their_last_hidden_state(tmp_path: Path) -> None:
    model = theirs(**SIZES["square"])
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 24, 24)
    ours = ViT.from_pretrained(tmp_path)
    assert_near(ours.forward_features(pixels), model.vit(pixels).last_hidden_state, 1e-4)


def test_a_checkpoint_without_a_head_gets_a_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = theirs(**SIZES["square"])
    transformers.ViTModel(model.config).save_pretrained(tmp_path)
    ours = ViT.from_pretrained(tmp_path, num_labels=4)
    assert "classifier.weight" in caplog.text
    assert "pooler" not in caplog.text
    assert ours(torch.zeros(1, 3, 24, 24)).shape == (1, 4)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    theirs(**SIZES["square"], hidden_act="relu").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="relu"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("size", "published"), [("vit-b16", 86_567_656), ("vit-l16", 304_326_632), ("vit-s16", 22_050_664)]
)
def test_published_parameter_counts(size: str, published: int) -> None:
    with torch.device("meta"):
        model = build(size)
    assert sum(p.numel() for p in model.parameters()) == published


def test_images_of_another_size_and_kind_are_refused() -> None:
    model = ViT(ViTConfig(image_size=16, patch_size=8, num_layers=1, d_model=8, num_heads=2, num_labels=2))
    for wrong in (torch.zeros(1, 3, 16, 24), torch.zeros(1, 1, 16, 16), torch.zeros(3, 16, 16)):
        with pytest.raises(ModelError, match="pixel_values"):
            model(wrong)
    model.config.interpolate_positions = True
    assert model(torch.zeros(1, 3, 16, 24)).shape == (1, 2)
    with pytest.raises(ModelError, match="too small"):
        model(torch.zeros(1, 3, 16, 7))
    with pytest.raises(ModelError, match="floats"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"d_model": 30, "num_heads": 4}, "num_heads 3"),
        ({"image_size": 8, "patch_size": 16}, "patch_size 8"),
        ({"image_size": [8, 8, 8]}, "height, width"),
        ({"patch_size": 0}, "1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_would(values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        ViTConfig(**values)
