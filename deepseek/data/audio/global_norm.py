"""The stage that scales features by means and spreads of the whole training data, so that sound can be streamed.

`MeanVarianceNorm` needs the utterance's last frame for its first one; this stage treats each frame by itself. Loudness
is no longer taken out, so training should hear several (`AddSilence`, `AddNoise`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from deepseek.data.pipeline.stage import Domain, LearnedStage, Sample
from deepseek.errors import ConfigError, DataError


@dataclass(frozen=True)
class GlobalMeanVarianceNorm(LearnedStage):
    """Each feature to mean 0 and variance 1 over all frames of the training data (global CMVN).

    `means` and `stds`, one number for each feature, are learned. Raises ConfigError where they don't belong together.
    """

    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None

    takes: ClassVar[Domain] = Domain.FEATURES
    gives: ClassVar[Domain] = Domain.FEATURES

    def __post_init__(self) -> None:
        if (self.means is None) != (self.stds is None) or len(self.means or ()) != len(self.stds or ()):
            raise ConfigError(
                "means and stds belong together",
                found=f"{len(self.means or ())} means, {len(self.stds or ())} stds",
                wanted="one of each for every feature, or neither: they are learned then",
            )
        if any(not std > 0 for std in self.stds or ()):
            raise ConfigError("a std is not positive", found=min(self.stds or ()), wanted="above 0")

    @property
    def is_learned(self) -> bool:
        return self.means is not None

    def learned(self, samples: Iterable[Sample]) -> Self:
        """Return the stage with what the samples' `input_features` (frames, n) have. Raises DataError for none.

        A feature that does not vary is left at its size.
        """
        count, total, squares = 0, torch.zeros(0), torch.zeros(0)
        shift = torch.zeros(0)  # near the mean, so that the squares' sum keeps its digits
        for sample in samples:
            features: Tensor = sample["input_features"].double()
            if not count:
                shift = features.mean(dim=0)
                total = squares = torch.zeros_like(shift)
            _check_width(features, len(shift))
            moved = features - shift
            count, total, squares = count + len(moved), total + moved.sum(dim=0), squares + moved.square().sum(dim=0)
        if not count:
            raise DataError("there is no frame to learn from")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std = torch.where(std > 1e-6, std, 1.0)
        return dataclasses.replace(self, means=tuple((shift + mean).tolist()), stds=tuple(std.tolist()))

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with scaled features. Raises DataError before the stage has learned."""
        return {**sample, "input_features": self.scaled(sample["input_features"])}

    def scaled(self, features: Tensor) -> Tensor:
        """Return (..., frames, n) scaled. Raises DataError for another number of features, or before learning."""
        if self.means is None or self.stds is None:
            raise DataError(
                "GlobalMeanVarianceNorm does not know the data", fix="call learned(samples) with training samples"
            )
        _check_width(features, len(self.means))
        return (features - features.new_tensor(self.means)) / features.new_tensor(self.stds)


def _check_width(features: Tensor, wanted: int) -> None:
    if features.shape[-1] != wanted:
        raise DataError("the number of features differs", found=features.shape[-1], wanted=wanted)
