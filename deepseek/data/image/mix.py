"""MixUp and CutMix: samples of a batch blended, or pasted into each other, with their labels in the same shares.

Sources: MixUp, Zhang et al. 2017, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899. A stage turns labels
into shares of classes that sum to 1, and takes shares as well, so the two chain. Not here: Mosaic (`mosaic`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.settings import check_probability
from deepseek.data.pipeline.stage import BatchStage, Domain, Sample
from deepseek.errors import ConfigError, DataError

Window = tuple[slice, ...]
"""A range of each spatial axis."""


def blend(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """Return share * first + (1 - share) * second; a tensor `share` (batch,) holds one for each of the batch."""
    if isinstance(share, Tensor):
        share = share.to(first.dtype).reshape(-1, *([1] * (first.ndim - 1)))
    return second + (first - second) * share


def paste(first: Tensor, second: Tensor, window: Window) -> Tensor:
    """Return `first` (..., *space) with `second` inside `window`."""
    place: tuple[EllipsisType | slice, ...] = (..., *window)
    pasted = first.clone()
    pasted[place] = second[place]
    return pasted


def cut_window(space: Sequence[int], share: float, rng: np.random.Generator) -> tuple[Window, float]:
    """Return a window of 1 - share of the space, its centre anywhere, and the share that it leaves, exactly.

    The window is cut off at the edges, so it leaves at least about `share`.
    """
    side = (1 - share) ** (1 / len(space))
    window = []
    for length in space:
        half = length * side / 2
        centre = rng.uniform(0, length)
        window.append(slice(max(0, round(centre - half)), min(length, round(centre + half))))
    covered = math.prod(part.stop - part.start for part in window)
    return tuple(window), 1 - covered / math.prod(space)


def label_shares(label: Any, num_labels: int) -> Tensor:
    """Return each class's share, float32 (num_labels,), of a class number or of shares. Raises DataError."""
    if isinstance(label, Tensor) and label.ndim > 0:
        if label.shape != (num_labels,) or not label.is_floating_point():
            found = f"{label.dtype} of shape {tuple(label.shape)}"
            raise DataError(
                "the label has another form", found=found, wanted=f"a class or float shares ({num_labels},)"
            )
        return label.float()
    if not 0 <= int(label) < num_labels:
        raise DataError(
            "the label is no class", found=int(label), wanted=f"0 to {num_labels - 1}", fix="raise num_labels"
        )
    shares = torch.zeros(num_labels)
    shares[int(label)] = 1.0
    return shares


@dataclass(frozen=True)
class MixUp(BatchStage):
    """Blends each sample of a batch with another one: pixels and label shares by the same weight.

    The weight of a pair is drawn from Beta(alpha, alpha); alpha 0.2 is the paper's for ImageNet, 1 takes any weight
    alike. The others are the batch in a random order; so a sample may meet itself, in a batch of one always. `p` is the
    probability that a sample is blended. Takes `pixel_values` (channels, *space) of one shape; `label` becomes float32
    (num_labels,). Masks and boxes can't be blended: DataError.
    """

    takes: ClassVar[Domain] = Domain.PIXELS
    gives: ClassVar[Domain] = Domain.PIXELS
    augments: ClassVar[bool] = True

    num_labels: int
    alpha: float = 0.2
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_settings(self.alpha, self.num_labels, self.p)

    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Return the blended samples. Raises DataError for shapes that differ, labels out of range, masks or boxes."""
        shares = _check_samples(samples, self.num_labels, ("mask", "boxes"), "MixUp")
        mixed = []
        for place, other in enumerate(rng.permutation(len(samples))):
            weight = float(rng.beta(self.alpha, self.alpha)) if rng.random() < self.p else 1.0
            pixels = samples[place]["pixel_values"]
            if weight < 1:
                pixels = blend(pixels, samples[other]["pixel_values"], weight)
            label = blend(shares[place], shares[other], weight)
            mixed.append({**samples[place], "pixel_values": pixels, "label": label})
        return mixed


@dataclass(frozen=True)
class CutMix(BatchStage):
    """Pastes a window of another sample of the batch into each; label shares follow the area, exactly.

    The window's share of the image is drawn from Beta(alpha, alpha) (alpha 1 in the paper), its centre lies anywhere
    in the image, and what sticks out is cut off. `p` is the probability that a sample gets a window. Takes
    `pixel_values` (channels, *space) of one shape; a `mask` gets the same window; `label` becomes float32
    (num_labels,). Boxes can't be cut: DataError.
    """

    takes: ClassVar[Domain] = Domain.PIXELS
    gives: ClassVar[Domain] = Domain.PIXELS
    augments: ClassVar[bool] = True

    num_labels: int
    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_settings(self.alpha, self.num_labels, self.p)

    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Return the samples with windows. Raises DataError for shapes that differ, labels out of range, or boxes."""
        shares = _check_samples(samples, self.num_labels, ("boxes",), "CutMix")
        mixed = []
        for place, other in enumerate(rng.permutation(len(samples))):
            sample = {**samples[place], "label": shares[place]}
            weight = float(rng.beta(self.alpha, self.alpha)) if rng.random() < self.p else 1.0
            window, weight = cut_window(sample["pixel_values"].shape[1:], weight, rng)
            if weight < 1:
                for key in ("pixel_values", "mask") if "mask" in sample else ("pixel_values",):
                    sample[key] = paste(sample[key], samples[other][key], window)
                sample["label"] = blend(shares[place], shares[other], weight)
            mixed.append(sample)
        return mixed


def _check_settings(alpha: float, num_labels: int, p: float) -> None:
    if not 0 < alpha < math.inf:
        raise ConfigError("alpha is out of range", found=alpha, wanted="a number above 0")
    if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
        raise ConfigError("num_labels is out of range", found=repr(num_labels), wanted="the number of classes")
    check_probability("p", p)


def _check_samples(samples: Sequence[Sample], num_labels: int, refused: Sequence[str], stage: str) -> list[Tensor]:
    """Return the label shares of samples that can be mixed. Raises DataError naming the one that can't be."""
    first = samples[0]["pixel_values"]
    for place, sample in enumerate(samples):
        name = sample.get("index", place)
        for key in refused:
            if sample.get(key) is not None:
                raise DataError(f"{stage} can't mix '{key}'", found=f"sample {name}", fix=f"leave {stage} out")
        if "label" not in sample:
            raise DataError(f"{stage} needs a 'label'", found=f"sample {name} has {', '.join(sorted(sample))}")
        for key in ("pixel_values", "mask"):
            if (key in sample) != (key in samples[0]):
                raise DataError(f"some samples of the batch have no '{key}'", found=f"sample {name} differs")
        pixels = sample["pixel_values"]
        if pixels.shape != first.shape or not pixels.is_floating_point():
            raise DataError(
                f"{stage} needs float pixels of one shape",
                found=f"{pixels.dtype} {tuple(pixels.shape)} (sample {name}) and {tuple(first.shape)}",
                fix="add Resize or RandomCrop to the pipeline",
            )
        if sample.get("mask") is not None and sample["mask"].shape != pixels.shape[1:]:
            raise DataError("mask and pixels differ in size", found=f"{tuple(sample['mask'].shape)} (sample {name})")
    return [label_shares(sample["label"], num_labels) for sample in samples]
