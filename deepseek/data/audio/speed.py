"""Speed perturbation: a sound played faster or slower, tempo and pitch together.

Ko et al. 2015, "Audio augmentation for speech recognition", https://doi.org/10.21437/Interspeech.2015-711.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from torch import Tensor

from deepseek.data.audio.resampling import resample_audio
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError


@dataclass(frozen=True)
class SpeedPerturb(SampleStage):
    """Play a waveform at a speed drawn from `factors`. Raises ConfigError for factors out of range."""

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM
    augments: ClassVar[bool] = True

    factors: tuple[float, ...] = (0.9, 1.0, 1.1)

    def __post_init__(self) -> None:
        if not self.factors:
            raise ConfigError("there is no speed to draw from", found="factors=()", wanted="such as (0.9, 1.0, 1.1)")
        for factor in self.factors:
            _ratio(factor)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with a shorter or longer waveform. Raises DataError."""
        factor = self.factors[int(rng.integers(len(self.factors)))]
        return {**sample, "waveform": change_speed(sample["waveform"], factor)}


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """Return (..., ceil(time / factor)), the waveform (..., time) at `factor` times its speed, to a thousandth.

    Differentiable. Raises ConfigError for a factor that is not from 0.1 to 10, DataError for an unusable waveform.
    """
    ratio = _ratio(factor)
    return resample_audio(waveform, ratio.numerator, ratio.denominator)


def _ratio(factor: float) -> Fraction:
    if not 0.1 <= factor <= 10:
        raise ConfigError("a speed is out of range", found=factor, wanted="0.1 to 10, such as 0.9")
    return Fraction(round(factor * 1000), 1000)
