"""Mirrored images, with their masks and boxes. Volumes too: the last two axes count as height and width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.boxes import Matrix, boxes_moved
from deepseek.data.image.settings import check_probability, sample_image
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage


def horizontal_flip(image: Tensor) -> Tensor:
    """Return the image or mask (..., height, width) with left and right exchanged."""
    return torch.flip(image, (-1,))


def vertical_flip(image: Tensor) -> Tensor:
    """Return the image or mask (..., height, width) with top and bottom exchanged."""
    return torch.flip(image, (-2,))


@dataclass(frozen=True)
class HorizontalFlip(SampleStage):
    """Exchanges left and right with probability `p`, in image, mask and boxes; of volumes, along the width."""

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, mirrored or not. Raises DataError for an image of another form."""
        width = float(sample_image(sample, flat=False).shape[-1])
        mirrored = rng.random() < self.p
        return _flipped(sample, horizontal_flip, ((-1.0, 0.0, width), (0.0, 1.0, 0.0))) if mirrored else dict(sample)


@dataclass(frozen=True)
class VerticalFlip(SampleStage):
    """Exchanges top and bottom with probability `p`, in image, mask and boxes; of volumes, along the height."""

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, mirrored or not. Raises DataError for an image of another form."""
        height = float(sample_image(sample, flat=False).shape[-2])
        mirrored = rng.random() < self.p
        return _flipped(sample, vertical_flip, ((1.0, 0.0, 0.0), (0.0, -1.0, height))) if mirrored else dict(sample)


def _flipped(sample: Sample, flip: Callable[[Tensor], Tensor], matrix: Matrix) -> Sample:
    """Return the sample with `flip` done to image and mask, and `matrix`, which says the same, to the boxes."""
    mask: dict[str, Any] = {"mask": flip(sample["mask"])} if sample.get("mask") is not None else {}
    return {**sample, "image": flip(sample["image"]), **mask, **boxes_moved(sample, matrix)}
