"""Quiet sound before and behind an utterance: what a stream's utterances have around them, cut-out recordings lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from deepseek.data.audio.checks import check_waveform, sample_rate_of
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError

_MOST_MS = 60_000.0


@dataclass(frozen=True)
class AddSilence(SampleStage):
    """Put quiet white noise around a waveform, with `probability`: up to `before_ms` and `after_ms`, drawn evenly.

    Its level is drawn evenly from `level_db`, low to high, in dB of full scale. Raises ConfigError for settings out of
    range.
    """

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM
    augments: ClassVar[bool] = True

    before_ms: float = 300.0
    after_ms: float = 600.0
    level_db: tuple[float, float] = (-100.0, -50.0)
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 <= one <= _MOST_MS for one in (self.before_ms, self.after_ms)):
            found = f"before_ms={self.before_ms}, after_ms={self.after_ms}"
            raise ConfigError("a silence is out of range", found=found, wanted=f"0 to {_MOST_MS:g} ms")
        if len(self.level_db) != 2 or not -200 <= self.level_db[0] <= self.level_db[1] <= 0:
            raise ConfigError("level_db is out of range", found=self.level_db, wanted="(low, high) such as (-100, -50)")
        if not 0 <= self.probability <= 1:
            raise ConfigError("probability is out of range", found=self.probability, wanted="0 to 1")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with a longer waveform. Raises DataError."""
        waveform = check_waveform(sample["waveform"])
        if rng.random() >= self.probability:
            return sample
        rate, scale = sample_rate_of(sample), 10 ** (float(rng.uniform(*self.level_db)) / 20)
        parts = []
        for most in (self.before_ms, self.after_ms):
            shape = (*waveform.shape[:-1], int(rng.uniform(0, most) / 1000 * rate))
            parts.append(torch.from_numpy(scale * rng.standard_normal(shape)).to(waveform))
        return {**sample, "waveform": torch.cat([parts[0], waveform, parts[1]], dim=-1)}
