"""Log-mel spectra and cepstra of waveforms: batched, differentiable, on any device.

Kaldi's steps before the FFT are linear, so they are done once a sample rather than once a frame: the pre-emphasis runs
over the whole waveform, and a frame's mean comes from sums that the frames share. The FFT's squares are multiplied with
a few groups of filters, each over the bins that it sees. Work is cut into blocks that stay in the processor's cache.
Not here: stages (`features`), settings and filter banks (`mel`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.audio.checks import check_waveform
from deepseek.data.audio.mel import (
    PREEMPHASIS,
    FilterGroup,
    MelSettings,
    Style,
    check_style,
    cosine_transform,
    mel_constants,
)
from deepseek.errors import ConfigError, DataError

_BLOCK = 1 << 19  # samples of all frames of a block
_FLOOR = {"kaldi": torch.finfo(torch.float32).eps, "librosa": 1e-10}
_DECIBELS = 10 / math.log(10)
_RANGE_DB = 80.0


def log_mel(waveform: Tensor, settings: MelSettings | None = None) -> Tensor:
    """Return (..., frames, n_mels), the natural log of mel energies, of a waveform (..., time).

    `settings` None is `MelSettings()`: 16 kHz, Kaldi's style. Raises DataError for a waveform without samples, too
    short for one frame, or not finite.
    """
    return _by_rows(waveform, settings or MelSettings(), lambda part: part)


def fbank(waveform: Tensor, sample_rate: int = 16000, n_mels: int = 80) -> Tensor:
    """Return (..., frames, n_mels), filter bank features as Kaldi computes them: `log_mel` in its style."""
    return log_mel(waveform, MelSettings(sample_rate=sample_rate, n_mels=n_mels))


def mfcc(
    waveform: Tensor, settings: MelSettings | None = None, n_mfcc: int = 13, lifter: float | None = None
) -> Tensor:
    """Return (..., frames, n_mfcc), mel-frequency cepstral coefficients of a waveform (..., time).

    The first one is the cosine transform's own, not the frame's energy. `lifter` None is the style's value. Raises
    what `log_mel` and `cepstra` raise.
    """
    chosen = settings or MelSettings()
    return _by_rows(waveform, chosen, lambda part: cepstra(part, n_mfcc, chosen.style, lifter))


def cepstra(spectrogram: Tensor, n_mfcc: int = 13, style: Style = "kaldi", lifter: float | None = None) -> Tensor:
    """Return (..., frames, n_mfcc) of natural log-mel energies (..., frames, n_mels).

    In librosa's style decibels less than 80 below the loudest of each (frames, n_mels) count as 80 below.
    Raises ConfigError for an unknown style or lifter, DataError where there are fewer mel bands than coefficients.
    """
    check_cepstra(n_mfcc, style, lifter)
    if spectrogram.ndim < 2 or spectrogram.shape[-1] < n_mfcc:
        raise DataError(
            "the spectrogram has too few mel bands",
            found=f"shape {tuple(spectrogram.shape)}",
            wanted=f"(..., frames, n_mels), n_mels at least n_mfcc={n_mfcc}",
        )
    weight = lifter if lifter is not None else {"kaldi": 22.0, "librosa": 0.0}[style]
    matrix = cosine_transform(
        spectrogram.shape[-1], n_mfcc, style, float(weight), spectrogram.device, spectrogram.dtype
    )
    if style == "librosa":
        loudest = spectrogram.amax(dim=(-2, -1), keepdim=True)
        return torch.maximum(spectrogram, loudest - _RANGE_DB / _DECIBELS) @ (matrix * _DECIBELS)
    return spectrogram @ matrix


def check_cepstra(n_mfcc: int, style: str, lifter: float | None) -> None:
    """Raise ConfigError for settings of `cepstra` that can't be."""
    check_style(style)
    if n_mfcc < 1:
        raise ConfigError("n_mfcc is too small", found=n_mfcc, wanted="at least 1")
    if lifter is not None and not 0 <= lifter < math.inf:
        raise ConfigError("lifter is out of range", found=lifter, wanted="0 (none) or more, 22 in Kaldi")


def num_frames(samples: int, settings: MelSettings) -> int:
    """Return how many frames a waveform of so many samples has."""
    if settings.style == "kaldi":
        return max(0, 1 + (samples - settings.window) // settings.hop)
    return 1 + samples // settings.hop


def _by_rows(waveform: Tensor, settings: MelSettings, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `finish` of the log-mel spectra, a few waveforms at a time: what is in between never fills the memory."""
    check_waveform(waveform, settings.window if settings.style == "kaldi" else 1, "one frame")
    rows = waveform.reshape(-1, waveform.shape[-1])
    frames = num_frames(waveform.shape[-1], settings)
    at_once = max(1, _BLOCK // (frames * settings.fft_size))
    parts = [finish(_log_mel_of_rows(part, frames, settings)) for part in torch.split(rows, at_once)]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.reshape(*waveform.shape[:-1], *joined.shape[1:])


def _log_mel_of_rows(rows: Tensor, frames: int, settings: MelSettings) -> Tensor:
    """Return (rows, frames, n_mels) of (rows, time)."""
    constants = mel_constants(settings, rows.device, rows.dtype)
    needed = (frames - 1) * settings.hop + settings.fft_size
    means = None
    if settings.style == "kaldi":
        means = _frame_means(rows, frames, settings).unsqueeze(-1) * (1 - PREEMPHASIS)
        # the first sample of a frame has no weight in the window, so what comes before a frame does not matter
        sharpened = torch.sub(rows[:, 1:], rows[:, :-1], alpha=PREEMPHASIS)
        signal = F.pad(sharpened, (1, needed - rows.shape[1]))
    else:
        left = settings.fft_size // 2 - (settings.fft_size - settings.window) // 2
        signal = F.pad(rows, (left, needed - left - rows.shape[1]))
    views = signal.unfold(-1, settings.fft_size, settings.hop)
    at_once = max(1, _BLOCK // settings.fft_size)
    parts = []
    for start in range(0, frames, at_once):
        part = views[:, start : start + at_once]
        if means is not None:
            part = part - means[:, start : start + at_once]
        parts.append(_log_mel_of_frames(part * constants.window, constants.groups, _FLOOR[settings.style]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _log_mel_of_frames(frames: Tensor, groups: Sequence[FilterGroup], floor: float) -> Tensor:
    """Return (rows, frames, n_mels) of windowed frames (rows, frames, n_fft)."""
    rows, count, _ = frames.shape
    bins = torch.view_as_real(torch.fft.rfft(frames)).reshape(rows * count, -1)
    # memory that is used again stays in the cache; where gradients are wanted they need what was there
    squares = bins.square() if bins.requires_grad else bins.square_()
    energies = torch.cat([squares[:, group.first : group.last] @ group.weights for group in groups], dim=1)
    if energies.requires_grad:
        return energies.clamp_min(floor).log().reshape(rows, count, -1)
    return energies.clamp_min_(floor).log_().reshape(rows, count, -1)


def _frame_means(rows: Tensor, frames: int, settings: MelSettings) -> Tensor:
    """Return (rows, frames), each frame's mean, from the sums of the pieces that neighbouring frames share."""
    piece = math.gcd(settings.window, settings.hop)
    used = (frames - 1) * settings.hop + settings.window
    sums = rows[:, :used].reshape(rows.shape[0], -1, piece).sum(-1)
    return sums.unfold(-1, settings.window // piece, settings.hop // piece).sum(-1) / settings.window
