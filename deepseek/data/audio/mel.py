"""Mel filter banks, windows and cosine transforms: the constants behind log-mel spectra and cepstra.

Two conventions, each with the details of the toolkit that it is named after. Not here: sound (`spectrogram`).

| | "kaldi" | "librosa" |
|---|---|---|
| frames | whole ones only | centred on multiples of the hop, zeros beyond the ends |
| each frame | mean removed, pre-emphasis 0.97 | as it is |
| window | Hann to the power of 0.85 ("povey") | periodic Hann, in the middle of the FFT |
| mel scale | 1127 ln(1 + f / 700) | Slaney's: linear below 1 kHz, then logarithmic |
| filters | triangles on the mel scale, height 1 | triangles in Hz, area 1 |
| lowest frequency | 20 Hz | 0 Hz |
| log | natural, energies at least 1.19e-7 | natural, energies at least 1e-10 |
| cepstra | liftered with 22 | of decibels, at most 80 below the loudest |

Sources: Davis and Mermelstein 1980, https://doi.org/10.1109/TASSP.1980.1163420 (cepstra); Slaney, "Auditory Toolbox",
1998 (his scale); the documentation of Kaldi (https://kaldi-asr.org/doc/feat.html) and librosa (https://librosa.org).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.audio.checks import check_sample_rate
from deepseek.errors import ConfigError

Style = Literal["kaldi", "librosa"]
PREEMPHASIS = 0.97
_MAX_FFT, _MAX_MELS = 1 << 16, 1024
_GROUP = 16  # filters of a group: as many as fill a vector register of matrix products
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MelSettings:
    """What a mel spectrum is made of; None is the style's own value.

    Fractions of a sample in `window_ms` and `hop_ms` are dropped. `n_fft` is the next power of two of the window
    where it is None. Raises ConfigError for what can't be.
    """

    sample_rate: int = 16000
    style: Style = "kaldi"
    n_mels: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0
    n_fft: int | None = None
    f_min: float | None = None
    f_max: float | None = None

    def __post_init__(self) -> None:
        check_sample_rate(self.sample_rate)
        check_style(self.style)
        if not 1 <= self.n_mels <= _MAX_MELS:
            raise ConfigError("n_mels is out of range", found=self.n_mels, wanted=f"1 to {_MAX_MELS}")
        if not 0 < self.hop_ms < math.inf or not 0 < self.window_ms < math.inf or self.hop < 1 or self.window < 2:
            raise ConfigError(
                "the window or the hop is too short",
                found=f"window_ms={self.window_ms}, hop_ms={self.hop_ms} at {self.sample_rate} Hz",
                wanted="a window of 2 samples and a hop of 1 sample at least",
            )
        if not self.window <= self.fft_size <= _MAX_FFT:
            raise ConfigError(
                "n_fft is out of range", found=self.fft_size, wanted=f"{self.window} (the window) to {_MAX_FFT}"
            )
        if not 0 <= self.low < self.high <= self.sample_rate / 2:
            raise ConfigError(
                "the band of the mel filters is out of range",
                found=f"{self.low} to {self.high} Hz",
                wanted=f"0 <= f_min < f_max <= {self.sample_rate / 2:g} Hz, half the sample rate",
            )

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return int(self.sample_rate * self.window_ms / 1000 + 1e-6)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.hop_ms / 1000 + 1e-6)

    @property
    def fft_size(self) -> int:
        """Length of the FFT."""
        return self.n_fft if self.n_fft is not None else 1 << (self.window - 1).bit_length()

    @property
    def low(self) -> float:
        """The lowest frequency, Hz."""
        return self.f_min if self.f_min is not None else {"kaldi": 20.0, "librosa": 0.0}[self.style]

    @property
    def high(self) -> float:
        """The highest frequency, Hz."""
        return self.f_max if self.f_max is not None else self.sample_rate / 2


def check_style(style: str) -> None:
    """Raise ConfigError for a style that is none of `Style`."""
    if style not in get_args(Style):
        raise ConfigError("unknown style of features", found=repr(style), wanted="'kaldi' or 'librosa'")


class FilterGroup(NamedTuple):
    """Neighbouring filters and the part of a spectrum that they see: low ones are narrow, most of a full table is 0."""

    first: int
    last: int
    """Which numbers of the spectrum's `real, imaginary, real, ...`, up to `last`, which is not one of them."""
    weights: Tensor
    """(last - first, filters): each weight twice, for the squares of the real and of the imaginary part."""


class MelConstants(NamedTuple):
    """The tensors that one set of settings needs."""

    window: Tensor
    """(n_fft,), zeros behind the window itself."""
    groups: tuple[FilterGroup, ...]


@lru_cache(maxsize=64)
def mel_constants(settings: MelSettings, device: torch.device, dtype: torch.dtype) -> MelConstants:
    """Return the window and the filters, made once for each device and dtype."""
    window = np.zeros(settings.fft_size)
    window[: settings.window] = _window(settings)
    filters = np.repeat(mel_filters(settings), 2, axis=1).T
    groups = []
    with torch.inference_mode(False):  # what is kept must serve training too
        for part in np.array_split(filters, -(-settings.n_mels // _GROUP), axis=1):
            used = np.flatnonzero(part.any(axis=1))
            first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 2)
            groups.append(FilterGroup(first, last, torch.tensor(part[first:last], dtype=dtype, device=device)))
        return MelConstants(torch.tensor(window, dtype=dtype, device=device), tuple(groups))


def mel_filters(settings: MelSettings) -> NDArray[np.float64]:
    """Return the filters, (n_mels, n_fft // 2 + 1)."""
    hertz = np.linspace(0, settings.sample_rate / 2, settings.fft_size // 2 + 1)
    if settings.style == "kaldi":
        edges = np.linspace(_to_mel(settings.low), _to_mel(settings.high), settings.n_mels + 2)
        filters = _triangles(edges, np.array([_to_mel(value) for value in hertz]))
        filters[:, -1] = 0  # Kaldi's banks leave out the bin at half the sample rate
    else:
        edges = _from_slaney(np.linspace(_to_slaney(settings.low), _to_slaney(settings.high), settings.n_mels + 2))
        filters = _triangles(edges, hertz) * (2 / (edges[2:] - edges[:-2]))[:, None]
    empty = int((filters.max(axis=1) <= 0).sum())
    if empty:
        _log.warning(
            "%d of %d mel filters are narrower than the FFT resolves and stay empty; take fewer, or a longer n_fft",
            empty,
            settings.n_mels,
        )
    return filters


@lru_cache(maxsize=64)
def cosine_transform(
    n_mels: int, n_mfcc: int, style: Style, lifter: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return (n_mels, n_mfcc): the orthonormal DCT-II, its columns weighted by the lifter (0: not weighted).

    The lifter L weights coefficient i by 1 + L/2 sin(pi i / L); the first has i = 0 in Kaldi and i = 1 in librosa.
    """
    order, place = np.arange(n_mfcc), np.arange(n_mels)[:, None]
    matrix = np.sqrt(2 / n_mels) * np.cos(np.pi / n_mels * (place + 0.5) * order)
    matrix[:, 0] = np.sqrt(1 / n_mels)
    if lifter > 0:
        matrix *= 1 + lifter / 2 * np.sin(np.pi * (order + (style == "librosa")) / lifter)
    with torch.inference_mode(False):
        return torch.tensor(matrix, dtype=dtype, device=device)


def _window(settings: MelSettings) -> NDArray[np.float64]:
    steps = np.arange(settings.window)
    if settings.style == "kaldi":
        hann: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * steps / (settings.window - 1))
        return np.maximum(hann, 0) ** 0.85
    periodic: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * steps / settings.window)
    return periodic


def _triangles(edges: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (filters, points): filter k rises from edge k to edge k+1 and falls to edge k+2."""
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    sides = np.minimum((points - left) / (middle - left), (right - points) / (right - middle))
    found: NDArray[np.float64] = np.maximum(sides, 0)
    return found


def _to_mel(hertz: float) -> float:
    return 1127 * math.log1p(hertz / 700)


_BREAK_HZ, _HZ_PER_MEL, _LOG_STEP = 1000.0, 200 / 3, math.log(6.4) / 27


def _to_slaney(hertz: float) -> float:
    if hertz < _BREAK_HZ:
        return hertz / _HZ_PER_MEL
    return _BREAK_HZ / _HZ_PER_MEL + math.log(hertz / _BREAK_HZ) / _LOG_STEP


def _from_slaney(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = mel - _BREAK_HZ / _HZ_PER_MEL
    found: NDArray[np.float64] = np.where(above < 0, mel * _HZ_PER_MEL, _BREAK_HZ * np.exp(_LOG_STEP * above))
    return found
