"""Mosaic: four images of a batch in one, so that a detector sees objects small, cut off and in new company.

Source: Bochkovskiy et al. 2020, YOLOv4, arXiv:2004.10934, section 3.3. Where the paper leaves things open, the choices
are ours and stated in `Mosaic`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deepseek.data.image.boxes import clip_and_select, sample_boxes
from deepseek.data.image.settings import LARGEST_SIDE, check_probability, sample_image
from deepseek.data.pipeline.stage import BatchStage, Domain, Sample
from deepseek.errors import ConfigError, DataError


class Tile(NamedTuple):
    """Where a part of an image goes: to the canvas's rows and columns from `top`, `left`.

    The part begins at `row`, `column` of the image scaled to `scaled_height`, `scaled_width`.
    """

    top: int
    left: int
    height: int
    width: int
    scaled_height: int
    scaled_width: int
    row: int
    column: int


def tiles(
    sizes: Sequence[tuple[int, int]], canvas: tuple[int, int], centre: tuple[int, int], rng: np.random.Generator
) -> list[Tile]:
    """Return how four images of `sizes` (height, width) fill a canvas whose quarters meet at `centre` (row, column).

    Each image is scaled, its proportions kept, until it just covers its quarter; of what sticks out on one side a
    random part is seen.
    """
    rows = ((0, centre[0]), (centre[0], canvas[0] - centre[0]))
    columns = ((0, centre[1]), (centre[1], canvas[1] - centre[1]))
    quarters = [(row, column) for row in rows for column in columns]
    found = []
    for (height, width), ((top, tile_height), (left, tile_width)) in zip(sizes, quarters, strict=True):
        scale = max(tile_height / height, tile_width / width)
        scaled = (max(tile_height, round(height * scale)), max(tile_width, round(width * scale)))
        row, column = int(rng.integers(scaled[0] - tile_height + 1)), int(rng.integers(scaled[1] - tile_width + 1))
        found.append(Tile(top, left, tile_height, tile_width, *scaled, row, column))
    return found


def place_image(canvas: Tensor, image: Tensor, tile: Tile, nearest: bool = False) -> None:
    """Write an image (channels, height, width) into its tile of the canvas, scaled with antialiasing or by nearest."""
    size = (tile.scaled_height, tile.scaled_width)
    if nearest:
        scaled = interpolate(image[None].double(), size, mode="nearest-exact")[0].to(canvas.dtype)
    else:
        scaled = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    part = scaled[:, tile.row : tile.row + tile.height, tile.column : tile.column + tile.width]
    canvas[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = part


def place_boxes(boxes: Tensor, size: tuple[int, int], tile: Tile, min_visible: float) -> tuple[Tensor, Tensor]:
    """Return the xyxy boxes (n, 4) of an image of `size` on the canvas, cut at the tile's edges, and which to keep."""
    stretch = (tile.scaled_width / size[1], tile.scaled_height / size[0])
    moved = boxes * boxes.new_tensor(stretch * 2) - boxes.new_tensor((tile.column, tile.row) * 2)
    clipped, kept = clip_and_select(moved, tile.height, tile.width, min_visible)
    return clipped + boxes.new_tensor((tile.left, tile.top) * 2), kept


@dataclass(frozen=True)
class Mosaic(BatchStage):
    """Makes of each sample, with probability `p`, a canvas of four: itself and three drawn from the batch.

    `size` is the canvas's (height, width), or one number for both. The quarters meet at a random point, between a
    quarter and three quarters of each side, and the four take them in random order. Each image is scaled, its
    proportions kept, to cover its quarter; of what sticks out a random part is seen. Boxes follow, are cut at their
    quarter's edges, and dropped with their class when less than `min_visible` of their area is left. Masks follow too.

    Needs `boxes` or `mask`; a `label` for the whole image has no meaning here and is refused. `index`, `path` and
    other keys stay those of the sample itself. With `p` below 1 the other samples keep their size: let Resize or
    Letterbox to `size` follow before they are made a batch.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    size: int | tuple[int, int]
    p: float = 1.0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size
        if len(sides) > 2 or not all(isinstance(side, int) and 4 <= side <= LARGEST_SIDE for side in sides):
            wanted = f"a number of pixels or (height, width), each 4 to {LARGEST_SIDE}"
            raise ConfigError("size is no size of a canvas", found=repr(self.size), wanted=wanted)
        check_probability("p", self.p)
        check_probability("min_visible", self.min_visible)

    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Return as many samples as came. Raises DataError where they differ in channels, dtype or keys."""
        for place, sample in enumerate(samples):
            _check(sample, samples[0], place)
        return [
            self._canvas(samples, place, rng) if rng.random() < self.p else dict(samples[place])
            for place in range(len(samples))
        ]

    def _canvas(self, samples: Sequence[Sample], place: int, rng: np.random.Generator) -> Sample:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        chosen = rng.permutation([place, *rng.integers(len(samples), size=3)])
        four = [samples[one] for one in chosen]
        centre = (_between(height, rng), _between(width, rng))
        sizes = [(sample["image"].shape[1], sample["image"].shape[2]) for sample in four]
        placed = tiles(sizes, (height, width), centre, rng)
        image = four[0]["image"].new_empty(len(four[0]["image"]), height, width)
        changes: Sample = {"image": image}
        for sample, tile in zip(four, placed, strict=True):
            place_image(image, sample["image"], tile)
        if "mask" in four[0]:
            changes["mask"] = four[0]["mask"].new_empty(height, width)
            for sample, tile in zip(four, placed, strict=True):
                place_image(changes["mask"][None], sample["mask"][None], tile, nearest=True)
        if "boxes" in four[0]:
            found = [
                place_boxes(one["boxes"], size, tile, self.min_visible)
                for one, size, tile in zip(four, sizes, placed, strict=True)
            ]
            changes["boxes"] = torch.cat([boxes[kept] for boxes, kept in found])
            if "box_labels" in four[0]:
                changes["box_labels"] = torch.cat(
                    [one["box_labels"][kept] for one, (_, kept) in zip(four, found, strict=True)]
                )
        return {**samples[place], **changes}


def _between(side: int, rng: np.random.Generator) -> int:
    """Return a whole number from a quarter to three quarters of a side."""
    return int(rng.integers(math.ceil(side / 4), side * 3 // 4 + 1))


def _check(sample: Sample, first: Sample, place: int) -> None:
    name = sample.get("index", place)
    image = sample_image(sample)
    sample_boxes(sample)
    if "label" in sample:
        raise DataError("a mosaic has no one label", found=f"sample {name}", fix="leave Mosaic out, or drop 'label'")
    if "boxes" not in sample and "mask" not in sample:
        raise DataError("a mosaic needs boxes or a mask", found=f"sample {name} has {', '.join(sorted(sample))}")
    for key in ("boxes", "box_labels", "mask"):
        if (key in sample) != (key in first):
            raise DataError(f"some samples of the batch have no '{key}'", found=f"sample {name} differs from the first")
    if image.dtype != first["image"].dtype or len(image) != len(first["image"]):
        raise DataError(
            "the images of a mosaic differ in kind",
            found=f"{image.dtype} with {len(image)} channels (sample {name})",
            wanted=f"{first['image'].dtype} with {len(first['image'])} channels",
        )
