"""Mirrored images, with their masks and boxes. Volumes too: the last two axes count as height and width."""

from __future__ import annotations

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
        image = sample_image(sample, flat=False)
        if rng.random() >= self.p:
            return dict(sample)
        mask: dict[str, Any] = {"mask": horizontal_flip(sample["mask"])} if sample.get("mask") is not None else {}
        matrix: Matrix = ((-1.0, 0.0, float(image.shape[-1])), (0.0, 1.0, 0.0))
        return {**sample, "image": horizontal_flip(image), **mask, **boxes_moved(sample, matrix)}


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
        image = sample_image(sample, flat=False)
        if rng.random() >= self.p:
            return dict(sample)
        mask: dict[str, Any] = {"mask": vertical_flip(sample["mask"])} if sample.get("mask") is not None else {}
        matrix: Matrix = ((1.0, 0.0, 0.0), (0.0, -1.0, float(image.shape[-2])))
        return {**sample, "image": vertical_flip(image), **mask, **boxes_moved(sample, matrix)}
