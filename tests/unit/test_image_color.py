"""Colour of images against Pillow's ImageEnhance and colorsys; normalising against its formula."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek.data.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    Grayscale,
    Normalize,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
    normalize_image,
)
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(height: int = 31, width: int = 46, channels: int = 3) -> Tensor:
    return torch.from_numpy(rng().integers(0, 256, (channels, height, width), dtype=np.uint8))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(adjust_brightness, "Brightness"), (adjust_contrast, "Contrast"), (adjust_saturation, "Color")]
)
@pytest.mark.parametrize("factor", [0.0, 0.4, 0.93, 1.0, 1.3, 2.5])
def test_enhancements_agree_with_pillow(ours: Any, theirs: str, factor: float) -> None:
    Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    from PIL import ImageEnhance

    image = random_image()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    wanted = torch.from_numpy(np.array(getattr(ImageEnhance, theirs)(picture).enhance(factor))).permute(2, 0, 1)
    # theirs rounds the grey level and then cuts off, so that it is up to factor + 1 levels away
    assert (ours(image, factor).int() - wanted.int()).abs().max() <= 1 + (factor > 2)
    as_float = ours(image.float() / 255, factor) * 255
    assert (as_float - ours(image, factor).float()).abs().max() <= 0.51


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(-1, 1))
@settings(max_examples=200, deadline=None)
def test_hue_agrees_with_colorsys(colour: list[float], turn: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    wanted = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    found = adjust_hue(torch.tensor(colour, dtype=torch.float64).reshape(3, 1, 1), turn)
    assert found.flatten().tolist() == pytest.approx(wanted, abs=1e-9)


def test_hue_of_whole_levels() -> None:
    image = random_image()
    found = adjust_hue(image, 0.17)
    for y, x in rng().integers(0, (31, 46), (200, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, y, x].double() / 255).tolist())
        wanted = np.array(colorsys.hsv_to_rgb((hue + 0.17) % 1.0, saturation, value)) * 255
        assert found[:, y, x].tolist() == pytest.approx(wanted, abs=0.51)
    assert torch.equal(adjust_hue(image, 1.0), image) and torch.equal(adjust_hue(image, 0.0), image)
    assert adjust_hue(torch.tensor([255, 0, 0]).reshape(3, 1, 1).byte(), 1 / 3).flatten().tolist() == [0, 255, 0]


def test_grey_agrees_with_pillow() -> None:
    Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = random_image()
    wanted = np.array(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("L"))
    found = grayscale(image)
    assert found.shape == image.shape and (found[0].numpy().astype(int) - wanted).max() <= 1
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    "change", [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, lambda image, _: grayscale(image)]
)
def test_colour_is_batched_and_changes_nothing_in_place(change: Any) -> None:
    images = torch.stack([random_image(), random_image().flip(-1) // 2]).unsqueeze(1)
    before = images.clone()
    found = change(images, 1.4)
    assert found.shape == images.shape and found.dtype == torch.uint8 and torch.equal(images, before)
    assert torch.equal(found[1, 0], change(images[1, 0], 1.4))
    interleaved = images[0, 0].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(change(interleaved, 1.4), found[0, 0])
    grey = change(images[..., :1, :, :], 1.0)
    assert torch.equal(grey, images[..., :1, :, :])
    one = change(torch.full((3, 1, 1), 9, dtype=torch.uint8), 1.0)
    assert one.flatten().tolist() == [9, 9, 9]


def test_jitter_is_one_of_the_changes_it_is_made_of() -> None:
    image = random_image()
    source = rng(5)
    source.random()
    factor = float(source.uniform(0.5, 1.5))
    found = ColorJitter(brightness=0.5, contrast=0, saturation=0, hue=0).apply({"image": image}, rng(5))["image"]
    assert torch.equal(found, adjust_brightness(image, factor))
    seen = [ColorJitter().apply({"image": image}, rng(seed))["image"] for seed in range(4)]
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], ColorJitter().apply({"image": image}, rng(2))["image"])
    assert torch.equal(ColorJitter(0, 0, 0, 0).apply({"image": image}, rng())["image"], image)
    assert torch.equal(ColorJitter(p=0.0).apply({"image": image}, rng())["image"], image)


def test_jitter_factors_cover_their_range() -> None:
    image = torch.full((1, 1, 1), 0.25)
    source = rng()
    stage = ColorJitter(brightness=0.6, contrast=0, saturation=0, hue=0)
    levels = [stage.apply({"image": image}, source)["image"].item() / 0.25 for _ in range(1000)]
    assert min(levels) == pytest.approx(0.4, abs=0.02) and max(levels) == pytest.approx(1.6, abs=0.02)
    assert np.mean(levels) == pytest.approx(1.0, abs=0.05)


def test_grayscale_with_probability() -> None:
    image = random_image(4, 4)
    source = rng()
    acted = [not torch.equal(Grayscale(p=0.4).apply({"image": image}, source)["image"], image) for _ in range(500)]
    assert np.mean(acted) == pytest.approx(0.4, abs=0.07)


def test_normalize_agrees_with_its_formula() -> None:
    image = random_image()
    mean, std = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), torch.tensor(IMAGENET_STD).reshape(3, 1, 1)
    found = Normalize().apply({"image": image, "label": 1, "mask": torch.zeros(31, 46)}, rng())
    assert set(found) == {"pixel_values", "label", "mask"} and found["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(found["pixel_values"], (image.float() / 255 - mean) / std)
    torch.testing.assert_close(normalize_image(image.float() / 255), found["pixel_values"])
    assert torch.equal(normalize_image(image.expand(2, 5, -1, -1, -1))[1, 3], found["pixel_values"])
    volume = Normalize(mean=(0.5,), std=(2.0,)).apply({"image": torch.ones(1, 2, 3, 4)}, rng())["pixel_values"]
    assert volume.shape == (1, 2, 3, 4) and (volume == 0.25).all()


def test_a_pipeline_of_images_gives_a_batch() -> None:
    pipeline = Pipeline([ColorJitter(), Grayscale(p=0.5), Normalize()])
    batch = pipeline([{"image": random_image(), "label": 2}, {"image": random_image(), "label": 0}])
    assert batch["pixel_values"].shape == (2, 3, 31, 46) and batch["labels"].tolist() == [2, 0]
    assert [type(one).__name__ for one in pipeline.without_augmentation().written] == ["Normalize"]
    assert Pipeline.from_config(pipeline.to_config()).written == pipeline.written


def test_wrong_settings_and_images_are_refused() -> None:
    for make in (
        lambda: ColorJitter(brightness=-1),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(p=2),
        lambda: Grayscale(p=-0.1),
        lambda: Normalize(mean=(0.5,)),
        lambda: Normalize(mean=(), std=()),
        lambda: Normalize(std=(0.2, 0.0, 0.2)),
        lambda: Normalize(mean=(float("nan"), 0.0, 0.0)),
    ):
        with pytest.raises(ConfigError):
            make()
    two = random_image(4, 4, channels=2)
    for stage in (ColorJitter(), Grayscale(p=1.0), Normalize()):
        with pytest.raises(DataError, match="channels"):
            stage.apply({"image": two}, rng())
    with pytest.raises(DataError, match="no image"):
        adjust_hue(torch.zeros(3, 4, 4, dtype=torch.int64), 0.1)
