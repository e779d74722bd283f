"""Noise at a chosen signal-to-noise ratio: white, pink, or from a folder of recordings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.audio.checks import check_waveform, sample_rate_of
from deepseek.data.audio.io import read_audio
from deepseek.data.audio.resampling import resample_audio
from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

_ENDINGS = (".wav", ".flac", ".ogg")
_LIMIT_DB = 200.0


@dataclass(frozen=True)
class AddNoise(SampleStage):
    """Add noise, with `probability`, at a signal-to-noise ratio drawn evenly from `snr_db`, low to high, in dB.

    `noise` is "white", "pink" (power falls by 3 dB an octave), or a folder with WAV, FLAC and OGG files, any depth, of
    which one is drawn, brought to the sample's rate, and repeated or cut, from a drawn place on.
    A waveform that is all silence stays as it is. Raises ConfigError for settings out of range.
    """

    takes: ClassVar[Domain] = Domain.WAVEFORM
    gives: ClassVar[Domain] = Domain.WAVEFORM
    augments: ClassVar[bool] = True

    snr_db: tuple[float, float] = (5.0, 20.0)
    noise: str = "white"
    probability: float = 1.0

    def __post_init__(self) -> None:
        if len(self.snr_db) != 2 or not -_LIMIT_DB <= self.snr_db[0] <= self.snr_db[1] <= _LIMIT_DB:
            raise ConfigError("snr_db is out of range", found=self.snr_db, wanted="(low, high) such as (5.0, 20.0)")
        if not 0 <= self.probability <= 1:
            raise ConfigError("probability is out of range", found=self.probability, wanted="0 to 1")
        if self.noise not in ("white", "pink") and not Path(self.noise).is_dir():
            raise ConfigError("there is no such noise", found=repr(self.noise), wanted="'white', 'pink' or a folder")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with a noisy waveform. Raises DataError for a noise file that can't be read."""
        waveform = check_waveform(sample["waveform"])
        if rng.random() >= self.probability:
            return sample
        time, ratio = waveform.shape[-1], float(rng.uniform(*self.snr_db))
        if self.noise == "white":
            noise = torch.from_numpy(rng.standard_normal(time))
        elif self.noise == "pink":
            noise = pink_noise(time, rng)
        else:
            noise = _recorded(self.noise, time, sample_rate_of(sample), rng)
        return {**sample, "waveform": add_noise(waveform, noise.to(waveform), ratio)}


def add_noise(waveform: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Return waveform (..., time) plus noise (time,) or (..., time), scaled so that their powers differ by `snr_db` dB.

    The power is that of the whole waveform of each row. Where the waveform or the noise is silent nothing is added.
    """
    power = waveform.square().mean(dim=-1, keepdim=True)
    noise_power = noise.square().mean(dim=-1, keepdim=True)
    scale = (power / noise_power * 10 ** (-snr_db / 10)).sqrt()
    return waveform + torch.where(noise_power > 0, scale, 0) * noise


def pink_noise(time: int, rng: np.random.Generator) -> Tensor:
    """Return float64 (time,), noise whose power falls by 3 dB an octave, with mean 0 and power 1."""
    # shaped at a power of two, whose FFT is fast for every length
    size = 1 << max(3, math.ceil(math.log2(time)))
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, n=size)[:time]
    return torch.from_numpy(noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12))


def _recorded(folder: str, time: int, sample_rate: int, rng: np.random.Generator) -> Tensor:
    """Return (time,) of a drawn file of the folder, from a drawn place on, from its start again after its end."""
    files = _files(folder)
    if len(files) == 0:
        raise DataError(
            f"the folder of noises {folder} holds no sound", found="no file", wanted="WAV, FLAC or OGG files"
        )
    path = files[int(rng.integers(len(files)))]
    noise, rate = read_audio(path)
    noise = resample_audio(noise, rate, sample_rate)
    places = (torch.arange(time) + int(rng.integers(len(noise)))) % len(noise)
    return noise[places]


@lru_cache(maxsize=16)
def _files(folder: str) -> StringColumn:
    """Return the sound files, sorted, so that a draw finds the same one on every machine."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _ENDINGS)
    return StringColumn(map(str, found))
