"""The stage that brings all sounds to one sample rate. Not here: the filter (`resampling`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from deepseek.data.audio.checks import check_sample_rate, sample_rate_of
from deepseek.data.audio.resampling import resample_audio
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage


@dataclass(frozen=True)
class Resample(SampleStage):
    """Bring a waveform to `target_sr` Hz. Raises ConfigError for a rate that is out of range."""

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM

    target_sr: int = 16000

    def __post_init__(self) -> None:
        check_sample_rate(self.target_sr)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample at the new rate, `sample_rate` set. Raises DataError."""
        waveform = resample_audio(sample["waveform"], sample_rate_of(sample), self.target_sr)
        return {**sample, "waveform": waveform, "sample_rate": self.target_sr}
