"""One image of 512 x 512 in 8 bits through each change, against albumentations (OpenCV), both with all their threads.

`resize` and `decode_resize` hold our antialiased scaling against its area averaging; its default, which samples points,
is shown as reference: it does a quarter of the work and its result differs. `decode_reduced` is both libraries' way of
decoding a JPEG at half its size when a smaller image is wanted.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_cases.case import OURS, Measure
from deepseek.hardware import keep_freed_memory

_SIDE, _SMALL = 512, 224
_PEER = "albumentations"
_POINTS = "albumentations-points"
_NEEDS = {_PEER: "albumentations", _POINTS: "albumentations"}


def _measure(name: str, tolerance: float, points: bool = False) -> Measure:
    return Measure(
        name,
        "images/s",
        targets={_PEER: 0.8},
        references=(_POINTS,) if points else (),
        needs=_NEEDS,
        tolerance={"mean": tolerance},
    )


MEASURES = (
    _measure("decode_resize", 0.01, points=True),
    _measure("decode_reduced", 0.01, points=True),
    _measure("resize", 0.01, points=True),
    _measure("flip", 1e-6),
    _measure("affine", 0.05),
    _measure("jitter", 0.05),
)


def prepare(folder: Path, quick: bool) -> None:
    """Write a picture with detail at all scales, as photographs have, as pixels and as JPEG."""
    from PIL import Image

    rng = np.random.default_rng(0)
    levels = np.zeros((_SIDE, _SIDE, 3))
    for octave in range(2, 10):
        cells = rng.standard_normal((2**octave, 2**octave, 3))
        repeated = cells.repeat(_SIDE >> octave, axis=0).repeat(_SIDE >> octave, axis=1)
        levels += repeated * 60 / 2 ** (octave / 2)
    pixels = np.clip(levels + 128, 0, 255).astype(np.uint8)
    np.save(folder / "picture.npy", pixels)
    Image.fromarray(pixels).save(folder / "picture.jpg", quality=90)


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return images per second, and the mean level of what came out."""
    keep_freed_memory()  # for all contestants, as a loader's worker does
    make = _ours if contestant == OURS else _theirs
    step = make(measure, folder, contestant == _POINTS)
    for _ in range(20):
        found = step()
    means = []
    number, begin = 0, time.perf_counter()
    end = begin + (0.5 if quick else 3.0)
    while time.perf_counter() < end:
        for _ in range(10):
            found = step()
        number += 10
    rate = number / (time.perf_counter() - begin)
    for _ in range(100 if measure in ("affine", "jitter") else 1):  # random: the mean over many
        means.append(float(np.asarray(step()).mean()))
    assert found.shape in ((3, _SIDE, _SIDE), (_SIDE, _SIDE, 3), (3, _SMALL, _SMALL), (_SMALL, _SMALL, 3))
    return rate, {"mean": float(np.mean(means))}


def _ours(measure: str, folder: Path, points: bool) -> Callable[[], Any]:
    import torch

    from deepseek.data.image import ColorJitter, HorizontalFlip, RandomAffine, read_image, resize_image

    path = folder / "picture.jpg"
    size = (_SMALL, _SMALL)
    if measure == "decode_resize":
        return lambda: resize_image(read_image(path), size)
    if measure == "decode_reduced":
        return lambda: resize_image(read_image(path, target_size=size), size)
    image = torch.from_numpy(np.load(folder / "picture.npy")).permute(2, 0, 1)  # as read_image gives it
    if measure == "resize":
        return lambda: resize_image(image, size)
    rng = np.random.default_rng(0)
    stage = {
        "flip": HorizontalFlip(p=1.0),
        "affine": RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1)),
        "jitter": ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
    }[measure]
    return lambda: stage.apply({"image": image}, rng)["image"]


def _theirs(measure: str, folder: Path, points: bool) -> Callable[[], Any]:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or it asks the network for its newest version
    albumentations: Any = importlib.import_module("albumentations")
    cv2: Any = importlib.import_module("cv2")
    path = str(folder / "picture.jpg")
    method = cv2.INTER_LINEAR if points else cv2.INTER_AREA
    resize = albumentations.Resize(_SMALL, _SMALL, interpolation=method)
    if measure in ("decode_resize", "decode_reduced"):
        how = cv2.IMREAD_COLOR_RGB if measure == "decode_resize" else cv2.IMREAD_REDUCED_COLOR_2
        if measure == "decode_resize":
            return lambda: resize(image=cv2.imread(path, how))["image"]
        return lambda: resize(image=cv2.cvtColor(cv2.imread(path, how), cv2.COLOR_BGR2RGB))["image"]
    image = np.load(folder / "picture.npy")
    change = {
        "resize": lambda: resize,
        "flip": lambda: albumentations.HorizontalFlip(p=1.0),
        "affine": lambda: albumentations.Affine(
            rotate=(-10, 10), translate_percent={"x": (-0.1, 0.1), "y": (-0.1, 0.1)}, scale=(0.9, 1.1), p=1.0
        ),
        "jitter": lambda: albumentations.ColorJitter(
            brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05), p=1.0
        ),
    }[measure]()
    return lambda: change(image=image)["image"]
