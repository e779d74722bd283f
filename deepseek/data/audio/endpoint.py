"""The stage that cuts silence from both ends of a recording. Not here: how speech is found (`endpointer`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from deepseek.data.audio.checks import check_waveform, sample_rate_of
from deepseek.data.audio.endpointer import EndpointSettings, Method, detect_speech
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError


@dataclass(frozen=True)
class TrimSilence(SampleStage):
    """Keep a waveform from its first to its last speech, with `margin_ms` to each side; pauses between stay.

    Where no speech is found the waveform stays as it is. Several channels are judged by their mean and cut alike.
    Raises ConfigError for settings out of range.
    """

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM

    method: Method = "energy"
    margin_ms: float = 50.0
    min_speech_ms: float = 50.0

    def __post_init__(self) -> None:
        EndpointSettings(self.method, min_speech_ms=self.min_speech_ms)
        if not 0 <= self.margin_ms <= 60_000:
            raise ConfigError("margin_ms is out of range", found=self.margin_ms, wanted="0 to 60000")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with the shorter waveform. Raises DataError for a waveform that can't be used."""
        waveform, sample_rate = check_waveform(sample["waveform"]), sample_rate_of(sample)
        one = waveform if waveform.ndim == 1 else waveform.mean(dim=0)
        settings = EndpointSettings(self.method, min_speech_ms=self.min_speech_ms)
        segments = detect_speech(one, sample_rate, settings)
        if not segments:
            return sample
        margin = round(self.margin_ms * sample_rate / 1000)
        start, end = max(0, segments[0].start - margin), segments[-1].end + margin
        return {**sample, "waveform": waveform[..., start:end]}
