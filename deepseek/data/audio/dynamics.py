"""Filters over time: pre-emphasis of sound; normalised mean and variance, and deltas, of features.

Batched and differentiable. Not here: stages (`features`).
Sources: Furui 1981, https://doi.org/10.1109/TASSP.1981.1163530 (mean subtraction); Furui 1986,
https://doi.org/10.1109/TASSP.1986.1164788 (deltas, by regression over neighbouring frames).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.audio.checks import check_waveform
from deepseek.errors import ConfigError, DataError

_SMALLEST_VARIANCE = 1e-10


def pre_emphasis(waveform: Tensor, coefficient: float = 0.97) -> Tensor:
    """Return y of the same shape, y[t] = x[t] - coefficient * x[t-1], where x[-1] is x[0]. Raises DataError."""
    check_waveform(waveform)
    before = torch.cat([waveform[..., :1], waveform[..., :-1]], dim=-1)
    return waveform - coefficient * before


def normalize_features(features: Tensor, variance: bool = True) -> Tensor:
    """Return features (..., frames, n) with mean 0 and, with `variance`, variance 1 of each feature over the frames.

    A feature that does not vary becomes 0. Raises DataError where there is no frame.
    """
    _check_features(features)
    centred = features - features.mean(dim=-2, keepdim=True)
    if not variance:
        return centred
    return centred * centred.square().mean(dim=-2, keepdim=True).clamp_min(_SMALLEST_VARIANCE).rsqrt()


def normalize_sliding(features: Tensor, window: int = 300, variance: bool = False) -> Tensor:
    """Return features (..., frames, n) normalised over the `window` frames around each, its own half before it.

    At the ends the window moves inside, so that it keeps its length; where there are fewer frames it is all of them.
    Raises DataError where there is no frame, ConfigError for a window below 2.
    """
    _check_features(features)
    check_window(window)
    frames = features.shape[-2]
    if frames <= window:
        return normalize_features(features, variance)
    # sums from the first frame on, in float64: differences of large sums keep their digits
    whole = features.double()
    whole = whole - whole.mean(dim=-2, keepdim=True)
    first = (torch.arange(frames, device=features.device) - window // 2).clamp(0, frames - window)
    mean = _window_sums(whole, first, window) / window
    centred = whole - mean
    if variance:
        spread = _window_sums(whole.square(), first, window) / window - mean.square()
        centred = centred * spread.clamp_min(_SMALLEST_VARIANCE).rsqrt()
    return centred.to(features.dtype)


def deltas(features: Tensor, window: int = 2) -> Tensor:
    """Return the slope over time, shape (..., frames, n): a regression over `window` frames to each side.

    The first and the last frame stand for what is beyond the ends. Raises DataError where there is no frame,
    ConfigError for a window below 1.
    """
    _check_features(features)
    if window < 1:
        raise ConfigError("the window of deltas is too small", found=window, wanted="at least 1 frame to each side")
    *lead, frames, count = features.shape
    columns = features.reshape(-1, frames, count).transpose(1, 2)
    steps = torch.arange(-window, window + 1, dtype=features.dtype, device=features.device)
    padded = F.pad(columns, (window, window), mode="replicate")
    slopes = padded.unfold(-1, 2 * window + 1, 1) @ (steps / steps.square().sum())
    return slopes.transpose(1, 2).reshape(*lead, frames, count)


def check_window(window: int) -> None:
    """Raise ConfigError for a window of frames that nothing can be normalised over."""
    if window < 2:
        raise ConfigError("the window is too short", found=f"{window} frames", wanted="at least 2, such as 300")


def _window_sums(values: Tensor, first: Tensor, window: int) -> Tensor:
    """Return sums (..., frames, n) of `window` rows from row `first` on."""
    running = F.pad(values.cumsum(dim=-2), (0, 0, 1, 0))
    return running.index_select(-2, first + window) - running.index_select(-2, first)


def _check_features(features: Tensor) -> None:
    if features.ndim < 2 or features.shape[-2] == 0 or not features.is_floating_point():
        raise DataError(
            "these are no features", found=f"{features.dtype} {tuple(features.shape)}", wanted="floats (..., frames, n)"
        )
