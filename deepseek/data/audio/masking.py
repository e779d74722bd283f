"""What augmentation does to a spectrogram (..., frames, n_mels): bands masked or mixed, time warped. No random numbers.

Batched and differentiable. Not here: drawing the bands (`spec_augment`, `spec_mix`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.errors import ConfigError

Band = tuple[int, int]
"""First index and width."""


def band_mask(frames: int, n_mels: int, time_bands: Sequence[Band], freq_bands: Sequence[Band]) -> Tensor:
    """Return bool (frames, n_mels), True in any of the bands. What is beyond the edges is left out."""
    mask = torch.zeros(frames, n_mels, dtype=torch.bool)
    for start, width in time_bands:
        mask[start : start + width] = True
    for start, width in freq_bands:
        mask[:, start : start + width] = True
    return mask


def time_warp(spectrogram: Tensor, source: float, target: float) -> Tensor:
    """Return the spectrogram with its frame `source` moved to `target`; the parts before and after stretch to fit.

    Frames between are interpolated linearly; the first and the last frame stay. Raises ConfigError where source or
    target is not between them.
    """
    last = spectrogram.shape[-2] - 1
    if not (0 < source < last and 0 < target < last):
        raise ConfigError(
            "the point of a time warp is out of range", found=f"{source} to {target}", wanted=f"between 0 and {last}"
        )
    times = torch.arange(last + 1, dtype=torch.float64, device=spectrogram.device)
    before, after = times * (source / target), source + (times - target) * ((last - source) / (last - target))
    places = torch.where(times < target, before, after).clamp(0, last)
    lower = places.floor().long().clamp(max=max(0, last - 1))
    share = (places - lower).to(spectrogram.dtype).unsqueeze(-1)
    return torch.lerp(spectrogram.index_select(-2, lower), spectrogram.index_select(-2, lower + 1), share)
