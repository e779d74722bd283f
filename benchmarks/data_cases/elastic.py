"""Elastic deformation of an RGB image and its mask at 512 x 512, one at a time as a worker of a loader meets them.

Ours and albumentations draw the same field: uniform noise (the faster of its two) blurred by sigma 4, times alpha from
10 to 30. Shown only is its `approximate` road, which draws another field: the blur's kernel is cut at 2 sigma. MONAI's
Rand2DElastic has no sigma: it moves control points `spacing` apart, set to give bends of like width and size. All may
use every core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_cases.case import Measure
from deepseek.hardware import keep_freed_memory

SIDE, SIGMA = 512, 4.0
ALPHA = (10.0, 30.0)
MEASURES = (
    Measure(
        "rgb_and_mask_512",
        "images/s",
        targets={"albumentations": 1.0, "monai": 5.0},
        references=("albumentations_approximate",),
        needs={"albumentations": "albumentations", "albumentations_approximate": "albumentations", "monai": "monai"},
        at_least={"field_std_over_definition": 0.97},
        at_most={"field_std_over_definition": 1.03, "still_image_change": 0.0},
    ),
)
Warp = Callable[[], Any]


def prepare(folder: Path, quick: bool) -> None:
    """Write an image with detail of all sizes, as tissue under a microscope has, and a mask of its bright parts."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE)))
    waves = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)) + 1 / SIDE
    image = np.fft.irfft2(spectrum / waves, (SIDE, SIDE))
    image = (image - image.min()) / (image.max() - image.min()) * 255
    np.save(folder / "image.npy", image.astype(np.uint8))
    np.save(folder / "mask.npy", image[0] > np.median(image[0]))


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return images (each with its mask) per second, and for ours what shows that the field is the paper's."""
    image, mask = np.load(folder / "image.npy"), np.load(folder / "mask.npy")
    keep_freed_memory()  # for all contestants, as a loader's worker does
    build = {"ours": _ours, "monai": _monai}.get(contestant)
    warp = build(image, mask) if build else _albumentations(image, mask, contestant.endswith("approximate"))
    _measure(warp, 0.5)
    return _measure(warp, 1.0 if quick else 4.0), _properties(image) if contestant == "ours" else {}


def _measure(warp: Warp, seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        warp()
        count += 1
    return count / (time.perf_counter() - start)


def _ours(image: np.ndarray, mask: np.ndarray) -> Warp:
    import torch

    from deepseek.data.image.elastic import RandomElasticDeformation

    stage, rng = RandomElasticDeformation(alpha=ALPHA, sigma=SIGMA), np.random.default_rng(1)
    sample = {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask).long()}
    return lambda: stage.apply(sample, rng)


def _albumentations(image: np.ndarray, mask: np.ndarray, approximate: bool) -> Warp:
    import albumentations

    pixels, classes = np.ascontiguousarray(np.moveaxis(image, 0, -1)), mask.astype(np.uint8)
    # it takes no range of alpha; its cost does not depend on it
    warp = albumentations.Compose(
        [
            albumentations.ElasticTransform(
                alpha=sum(ALPHA) / 2, sigma=SIGMA, approximate=approximate, noise_distribution="uniform", p=1.0
            )
        ]
    )
    return lambda: warp(image=pixels, mask=classes)


def _monai(image: np.ndarray, mask: np.ndarray) -> Warp:
    import torch
    from monai.transforms import Rand2DElasticd

    spread = sum(ALPHA) / 2 / (2 * math.sqrt(3 * math.pi) * SIGMA)
    warp = Rand2DElasticd(
        keys=["image", "mask"],
        spacing=(2 * SIGMA, 2 * SIGMA),
        magnitude_range=(spread, spread),
        prob=1.0,
        mode=["bilinear", "nearest"],
    )
    sample = {"image": torch.from_numpy(image).float(), "mask": torch.from_numpy(mask)[None].float()}
    return lambda: warp(sample)


def _properties(image: np.ndarray) -> dict[str, float]:
    """Return the field's deviation over the definition's, and how many levels a field of zeros changes the image."""
    import torch

    from deepseek.data.image.elastic import elastic_deform, random_field

    rng = np.random.default_rng(2)
    fields = torch.stack([random_field((SIDE, SIDE), 1.0, SIGMA, rng) for _ in range(20)])
    wanted = 1 / (2 * math.sqrt(3 * math.pi) * SIGMA)
    pixels = torch.from_numpy(image)
    still = elastic_deform(pixels, torch.zeros(2, SIDE, SIDE)).int() - pixels.int()
    return {"field_std_over_definition": float(fields.std()) / wanted, "still_image_change": float(still.abs().max())}
