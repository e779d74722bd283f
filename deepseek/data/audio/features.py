"""Stages from sound to what a model takes: log-mel spectra, cepstra, and what is done before and after.

`FeatureExtract` is two stages, so that masking of spectra (SpecAugment, SpecMix) comes between them however the
pipeline is written. Not here: the computation (`spectrogram`, `dynamics`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from deepseek.data.audio.checks import sample_rate_of
from deepseek.data.audio.dynamics import check_window, deltas, normalize_features, normalize_sliding, pre_emphasis
from deepseek.data.audio.mel import MelSettings, Style
from deepseek.data.audio.spectrogram import cepstra, check_cepstra, log_mel
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage, Stage, StageGroup
from deepseek.errors import ConfigError

FeatureType = Literal["mfcc", "log_mel"]


@dataclass(frozen=True)
class LogMel(SampleStage):
    """Waveform to log-mel spectrogram, at the sample's own rate; several channels are averaged.

    Settings as in `deepseek.data.audio.MelSettings`. Raises ConfigError for what can't be at any rate.
    """

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.SPECTROGRAM

    n_mels: int = 80
    style: Style = "kaldi"
    window_ms: float = 25.0
    hop_ms: float = 10.0
    n_fft: int | None = None
    f_min: float | None = None
    f_max: float | None = None

    def __post_init__(self) -> None:
        # the top of the band and the FFT's length are held against the rate of each sample
        MelSettings(192_000, self.style, self.n_mels, self.window_ms, self.hop_ms, f_min=self.f_min, f_max=self.f_max)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with `spectrogram` (frames, n_mels) in place of its waveform. Raises DataError."""
        settings = MelSettings(
            sample_rate_of(sample),
            self.style,
            self.n_mels,
            self.window_ms,
            self.hop_ms,
            self.n_fft,
            self.f_min,
            self.f_max,
        )
        waveform = sample["waveform"]
        if isinstance(waveform, torch.Tensor) and waveform.ndim == 2 and waveform.shape[0] > 0:
            waveform = waveform.mean(dim=0)
        rest = {key: value for key, value in sample.items() if key != "waveform"}
        return {**rest, "spectrogram": log_mel(waveform, settings)}


@dataclass(frozen=True)
class Cepstra(SampleStage):
    """Log-mel spectrogram to features: `n_mfcc` cepstra, or the spectrogram itself for type "log_mel".

    Raises ConfigError for an unknown type or style and for sizes that can't be.
    """

    takes: ClassVar[Domain] = Domain.SPECTROGRAM
    gives: ClassVar[Domain] = Domain.FEATURES

    type: FeatureType = "mfcc"
    n_mfcc: int = 13
    style: Style = "kaldi"
    lifter: float | None = None

    def __post_init__(self) -> None:
        if self.type not in get_args(FeatureType):
            raise ConfigError("unknown type of features", found=repr(self.type), wanted="'mfcc' or 'log_mel'")
        check_cepstra(self.n_mfcc, self.style, self.lifter)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with `input_features` in place of its spectrogram. Raises DataError."""
        found = sample["spectrogram"]
        if self.type == "mfcc":
            found = cepstra(found, self.n_mfcc, self.style, self.lifter)
        rest = {key: value for key, value in sample.items() if key != "spectrogram"}
        return {**rest, "input_features": found}


@dataclass(frozen=True)
class FeatureExtract(StageGroup):
    """Waveform to features of a model: `LogMel`, then `Cepstra`; stages on spectrograms run between the two.

    `type` "log_mel" gives (frames, n_mels), "mfcc" (frames, n_mfcc). Raises ConfigError for settings that can't be.
    """

    type: FeatureType = "log_mel"
    n_mels: int = 80
    n_mfcc: int = 13
    style: Style = "kaldi"
    window_ms: float = 25.0
    hop_ms: float = 10.0
    n_fft: int | None = None
    f_min: float | None = None
    f_max: float | None = None
    lifter: float | None = None

    def __post_init__(self) -> None:
        if self.type == "mfcc" and self.n_mfcc > self.n_mels:
            raise ConfigError(
                "there are more cepstra than mel bands", found=f"n_mfcc={self.n_mfcc}", wanted=f"up to {self.n_mels}"
            )
        self.stages()

    def stages(self) -> tuple[Stage, ...]:
        """Return the two halves."""
        first = LogMel(self.n_mels, self.style, self.window_ms, self.hop_ms, self.n_fft, self.f_min, self.f_max)
        return first, Cepstra(self.type, self.n_mfcc, self.style, self.lifter)


@dataclass(frozen=True)
class PreEmphasis(SampleStage):
    """Lift high frequencies: y[t] = x[t] - coefficient * x[t-1]. Kaldi's style of features does so by itself."""

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM

    coefficient: float = 0.97

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient <= 1:
            raise ConfigError("coefficient is out of range", found=self.coefficient, wanted="0 to 1, such as 0.97")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with the filtered waveform. Raises DataError."""
        return {**sample, "waveform": pre_emphasis(sample["waveform"], self.coefficient)}


@dataclass(frozen=True)
class MeanVarianceNorm(SampleStage):
    """Each feature of an utterance to mean 0 and, with `variance`, variance 1 (CMVN).

    `window` None is over the whole utterance; a number of frames is a window that slides. Raises ConfigError for a
    window below 2.
    """

    takes: ClassVar[Domain] = Domain.FEATURES
    gives: ClassVar[Domain] = Domain.FEATURES

    variance: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            check_window(self.window)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with normalised features. Raises DataError."""
        features = sample["input_features"]
        if self.window is None:
            return {**sample, "input_features": normalize_features(features, self.variance)}
        return {**sample, "input_features": normalize_sliding(features, self.window, self.variance)}


@dataclass(frozen=True)
class Deltas(SampleStage):
    """Features with their slopes behind them: (frames, n) becomes (frames, n * (order + 1)).

    Raises ConfigError for an order that is not 1 or 2 and a window below 1.
    """

    takes: ClassVar[Domain] = Domain.FEATURES
    gives: ClassVar[Domain] = Domain.FEATURES

    order: int = 2
    window: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or self.window < 1:
            raise ConfigError(
                "the order or the window of deltas is out of range",
                found=f"order={self.order}, window={self.window}",
                wanted="order 1 or 2, window at least 1",
            )

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with the longer features. Raises DataError."""
        parts = [sample["input_features"]]
        for _ in range(self.order):
            parts.append(deltas(parts[-1], self.window))
        return {**sample, "input_features": torch.cat(parts, dim=-1)}
