"""SpecAugment: a spectrogram's time warped, some of its frequencies and of its frames masked.

Park et al. 2019, "SpecAugment", arXiv:1904.08779. Widths and places are drawn evenly as there. The warp moves one
frame along the time axis; here its reach is a share of the nearer end's distance, so that no part of an utterance, be
it long or short, is played faster or slower by more than that share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from deepseek.data.audio.masking import Band, band_mask, time_warp
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError

Fill = Literal["mean", "zero"]


@dataclass(frozen=True)
class SpecAugment(SampleStage):
    """Mask up to `freq_mask` mel bands and up to `time_mask` frames, each so many times, after a time warp.

    `time_warp` 0.2 is a change of speed of up to 20 %. A time mask takes no more than `max_time_share` of the frames.
    `fill` is what a masked place holds: "mean" the spectrogram's own mean, "zero" 0, for normalised spectra.
    Raises ConfigError for settings out of range.
    """

    takes: ClassVar[Domain] = Domain.SPECTROGRAM
    gives: ClassVar[Domain] = Domain.SPECTROGRAM
    augments: ClassVar[bool] = True

    freq_mask: int = 10
    time_mask: int = 20
    num_freq_masks: int = 1
    num_time_masks: int = 1
    time_warp: float = 0.2
    max_time_share: float = 1.0
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        counts = (self.freq_mask, self.time_mask, self.num_freq_masks, self.num_time_masks)
        if min(counts) < 0:
            raise ConfigError("a mask's width or number is negative", found=counts, wanted="0 (none) or more")
        if not 0 <= self.time_warp < 1:
            raise ConfigError("time_warp is out of range", found=self.time_warp, wanted="0 (none) to below 1")
        if not 0 < self.max_time_share <= 1:
            raise ConfigError("max_time_share is out of range", found=self.max_time_share, wanted="above 0, up to 1")
        if self.fill not in get_args(Fill):
            raise ConfigError("unknown fill of masks", found=repr(self.fill), wanted="'mean' or 'zero'")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with the changed spectrogram."""
        found = sample["spectrogram"]
        frames, n_mels = found.shape[-2:]
        if self.time_warp > 0 and frames >= 3:
            source = rng.uniform(1, frames - 2)
            reach = self.time_warp * min(source, frames - 1 - source)
            found = time_warp(found, source, source + rng.uniform(-reach, reach))
        most = min(self.time_mask, int(frames * self.max_time_share))
        time_bands = draw_bands(rng, self.num_time_masks, most, frames)
        freq_bands = draw_bands(rng, self.num_freq_masks, min(self.freq_mask, n_mels), n_mels)
        mask = band_mask(frames, n_mels, time_bands, freq_bands).to(found.device)
        value = found.mean() if self.fill == "mean" else found.new_zeros(())
        return {**sample, "spectrogram": torch.where(mask, value, found)}


def draw_bands(rng: np.random.Generator, count: int, widest: int, size: int) -> list[Band]:
    """Return `count` bands of a width from 0 to `widest`, anywhere within `size`."""
    bands = []
    for _ in range(count):
        width = int(rng.integers(0, widest + 1))
        bands.append((int(rng.integers(0, size - width + 1)), width))
    return bands
