"""The stage that makes of a waveform what Whisper and CLIP's audio tower read: bands first, a fixed number of frames.

At 16 kHz the numbers are those that the published Whisper models were trained on.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356, 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.audio.checks import check_waveform, sample_rate_of
from deepseek.data.audio.mel import MelSettings
from deepseek.data.audio.spectrogram import log_mel
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

_WINDOW_MS, _HOP_MS = 25.0, 10.0
_RANGE = 8.0  # powers of ten below the loudest
_SILENCE = -10.0
_LEAST_FRAMES, _MOST_FRAMES = 3, 1 << 20


@dataclass(frozen=True)
class WhisperFeatures(SampleStage):
    """Waveform to `input_features` (n_mels, max_frames): log-mel energies every 10 ms, silence behind the sound.

    Energies are powers of ten, at most 8 below the loudest, plus 4, a quarter of it. Channels are averaged. `too_long`:
    "error" raises DataError for a longer sound, "cut" takes its beginning. Raises ConfigError for settings that can't
    be.
    """

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.FEATURES

    n_mels: int = 80
    max_frames: int = 3000
    too_long: str = "error"

    def __post_init__(self) -> None:
        MelSettings(16_000, "librosa", self.n_mels)
        if not _LEAST_FRAMES <= self.max_frames <= _MOST_FRAMES:
            raise ConfigError(
                "max_frames is out of range", found=self.max_frames, wanted=f"{_LEAST_FRAMES} to {_MOST_FRAMES}"
            )
        if self.too_long not in ("error", "cut"):
            raise ConfigError("too_long must say what happens", found=repr(self.too_long), wanted="'error' or 'cut'")

    @property
    def seconds(self) -> float:
        """The longest sound."""
        return self.max_frames * _HOP_MS / 1000

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with `input_features` in place of its waveform. Raises DataError."""
        rate = sample_rate_of(sample)
        window = int(rate * _WINDOW_MS / 1000)
        settings = MelSettings(rate, "librosa", self.n_mels, _WINDOW_MS, _HOP_MS, n_fft=window)
        waveform = check_waveform(sample["waveform"], 2 * settings.hop + 1, "features of Whisper")
        waveform = waveform.mean(dim=0) if waveform.ndim == 2 else waveform
        most = self.max_frames * settings.hop
        if waveform.shape[-1] > most and self.too_long == "error":
            found, wanted = f"{waveform.shape[-1] / rate:.1f} s", f"at most {most / rate:g} s"
            raise DataError("the sound is too long", found=found, wanted=wanted, fix='cut it, or set too_long: "cut"')
        rest = {key: value for key, value in sample.items() if key != "waveform"}
        return {**rest, "input_features": self._features(waveform[:most], settings)}

    def _features(self, waveform: Tensor, settings: MelSettings) -> Tensor:
        """Return (n_mels, max_frames). The ends are mirrored, of which two hops are enough for a window."""
        edge, most = 2 * settings.hop, self.max_frames * settings.hop
        whole = F.pad(waveform, (0, min(settings.fft_size, most - len(waveform))))
        after = whole[-edge - 1 : -1].flip(0) if len(whole) == most else whole[:0]
        spectrum = log_mel(torch.cat([whole[1 : edge + 1].flip(0), whole, after]), settings)
        spectrum = spectrum[2 : 2 + self.max_frames] / math.log(10)
        spectrum = F.pad(spectrum, (0, 0, 0, self.max_frames - len(spectrum)), value=_SILENCE)
        return ((spectrum.clamp_min(float(spectrum.max()) - _RANGE) + 4) / 4).T.contiguous()
