"""Electron-microscopy slices with membrane masks (ISBI 2012): image and mask bent by one field stay together.

Membranes are dark and marked 0 in these masks. How well the mask fits is measured by the difference in grey between
the two classes: a mask that lags behind its image loses it, one that follows keeps it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.data.image.elastic import RandomElasticDeformation
from deepseek.data.pipeline import Pipeline
from deepseek.data.volume import RandomPatch, sliding_patches, stitch

pytestmark = pytest.mark.realdata

SLICES = 6


@pytest.fixture(scope="module")
def samples(real_data: Path) -> list[dict[str, Any]]:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = real_data / "vision" / "membrane"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    found = []
    for index in range(SLICES):
        with (
            image.open(folder / "images" / f"{index}.png") as picture,
            image.open(folder / "labels" / f"{index}.png") as labels,
        ):
            pixels, classes = np.array(picture.convert("L")), np.array(labels.convert("L")) > 127
        mask = torch.from_numpy(classes.astype(np.int64))
        found.append({"image": torch.from_numpy(pixels)[None], "mask": mask, "index": index})
    return found


def contrast(image: torch.Tensor, mask: torch.Tensor) -> float:
    """Return how much brighter class 1 (inside of cells) is than class 0 (membranes), in grey levels."""
    return float(image[0][mask == 1].float().mean() - image[0][mask == 0].float().mean())


def test_the_mask_follows_the_image(samples: list[dict[str, Any]]) -> None:
    pipeline = Pipeline([RandomElasticDeformation(alpha=(150.0, 200.0), sigma=10.0)], seed=1)
    for sample in samples:
        bent = pipeline(sample)
        before, after = (contrast(one["image"], one["mask"]) for one in (sample, bent))
        left_behind = contrast(bent["image"], sample["mask"])
        assert set(bent["mask"].unique().tolist()) == {0, 1}
        assert after == pytest.approx(before, rel=0.1)
        assert left_behind < 0.9 * before


def test_patches_hold_membranes_and_join_again(samples: list[dict[str, Any]]) -> None:
    sample = {**samples[0], "mask": 1 - samples[0]["mask"]}
    for epoch in range(20):
        patch = Pipeline([RandomPatch(96, foreground=1.0)])({**sample, "epoch": epoch})
        assert bool(patch["mask"].any())
    joined = stitch(sliding_patches(sample["image"], (200, 200), 0.3), (512, 512), "gaussian")
    assert torch.equal(joined, sample["image"])
