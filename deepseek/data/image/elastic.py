"""Elastic deformation: images bent by a smooth random field, with their masks and boxes.

Source: Simard, Steinkraus and Platt 2003, https://doi.org/10.1109/ICDAR.2003.1227801. As functions: `random_field`,
`elastic_deform` and `elastic_deform_mask`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.boxes import clip_and_select, sample_boxes
from deepseek.data.image.fields import field_bands, random_field
from deepseek.data.image.settings import check_probability, check_range, sample_image
from deepseek.data.image.warp import Border, deform_pair, elastic_deform, elastic_deform_mask, follow_points
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

__all__ = ["RandomElasticDeformation", "elastic_deform", "elastic_deform_mask", "random_field", "warp_boxes"]

_MOST_POINTS = 256


@dataclass(frozen=True)
class RandomElasticDeformation(SampleStage):
    """Bends image, mask and boxes together with probability `p`. Flat images and volumes (channels, d, h, w).

    `alpha` is the range that the scale of the displacements is drawn from, and `sigma` their smoothness, both in pixels
    and as in the paper: uniform noise from -1 to 1, blurred by a Gaussian of deviation `sigma`, times alpha. The blur
    leaves little of the noise: in 2D a pixel moves by alpha / (2 sqrt(3 pi) sigma) in each axis (a standard deviation),
    0.4 to 1.2 pixels with the default values. For bends that the eye sees at 512 x 512, raise both, such as alpha
    (100, 200) with sigma 10. With alpha above about 2 sigma^2 (in 2D) the image folds over itself in places.

    The mask takes the nearest pixel's class. A box becomes the upright hull of its warped outline, cut at the image's
    edges, and is dropped with its class when less than `min_visible` of its area is left. `border` says what is seen
    beyond the edges: "reflection", "border" (the last pixel) or "zeros" (class 0 in the mask).
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    alpha: tuple[float, float] = (10.0, 30.0)
    sigma: float = 4.0
    p: float = 1.0
    border: Border = "reflection"
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0.0)
        check_probability("p", self.p)
        check_probability("min_visible", self.min_visible)
        if not 0 <= self.sigma <= 1000:
            raise ConfigError("sigma is out of range", found=self.sigma, wanted="0 to 1000 pixels")
        if self.border not in ("reflection", "border", "zeros"):
            raise ConfigError("unknown border", found=repr(self.border), wanted="'reflection', 'border' or 'zeros'")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, bent or not. Raises DataError for an image of another form, or boxes in a volume."""
        image = sample_image(sample, flat=False)
        boxes = sample_boxes(sample)
        if boxes is not None and image.ndim != 3:
            raise DataError("boxes need a flat image", found=f"an image of shape {tuple(image.shape)}")
        if rng.random() >= self.p:
            return dict(sample)
        space = image.shape[1:]
        alpha = rng.uniform(*self.alpha)
        changes: dict[str, Any] = {}
        moves: Iterable[Tensor] = field_bands(space, alpha, self.sigma, rng)
        if boxes is not None:
            moves = list(moves)
            changes |= self._boxes(sample, boxes, torch.cat(moves, dim=1))
        changes["image"], mask = deform_pair(image, sample.get("mask"), moves, self.border)
        return {**sample, **changes} if mask is None else {**sample, **changes, "mask": mask}

    def _boxes(self, sample: Sample, boxes: Tensor, field: Tensor) -> dict[str, Any]:
        height, width = field.shape[1:]
        clipped, kept = clip_and_select(warp_boxes(boxes, field), height, width, self.min_visible)
        labels = {"box_labels": sample["box_labels"][kept]} if sample.get("box_labels") is not None else {}
        return {"boxes": clipped[kept], **labels}


def warp_boxes(boxes: Tensor, field: Tensor) -> Tensor:
    """Return the upright hulls (n, 4) of xyxy boxes (n, 4) whose outlines follow `field` (2, height, width).

    Boxes are in pixels where pixel i covers [i, i + 1]. Outlines are followed at points up to 2 pixels apart, more for
    boxes longer than 512. Nothing is cut at the image's edges.
    """
    if not len(boxes):
        return boxes.clone()
    longest = float((boxes[:, 2:] - boxes[:, :2]).max())
    along = torch.linspace(0, 1, min(_MOST_POINTS, max(2, int(longest / 2) + 2)), dtype=boxes.dtype)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    x, y = torch.cat((along, along, zero, one)), torch.cat((zero, one, along, along))  # the four sides
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    outline = low + torch.stack((x, y), dim=-1) * (high - low)  # (n, points, 2)
    found = follow_points(outline.reshape(-1, 2).flip(-1) - 0.5, field).flip(-1) + 0.5
    found = found.reshape(outline.shape).to(boxes.dtype)
    return torch.cat((found.amin(dim=1), found.amax(dim=1)), dim=-1)
