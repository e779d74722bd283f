"""SpecMix: bands of time and frequency of a spectrogram replaced by another sample's, the labels by their share.

Kim, Han and Ko 2021, "SpecMix: A Mixed Sample Data Augmentation Method for Training with Time-Frequency Domain
Features", https://doi.org/10.21437/Interspeech.2021-103. Unlike a patch (CutMix), bands leave whole stretches of time
and whole frequencies of both sounds, which is where the information of sound is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.audio.masking import Band, band_mask
from deepseek.data.audio.spec_augment import draw_bands
from deepseek.data.pipeline.stage import BatchStage, Domain, Sample
from deepseek.errors import ConfigError, DataError


@dataclass(frozen=True)
class SpecMix(BatchStage):
    """Mix each sample, with `probability`, with another one of the batch, in a few bands.

    Up to `num_freq_bands` bands of frequency and up to `num_time_bands` of time, each up to `band_share` of the axis.
    `label`, a class below `num_labels` or shares (num_labels,), becomes shares: those of both, by how much of the
    spectrogram is whose. Where the other sample is shorter, the frames beyond its end stay.
    Raises ConfigError for settings out of range.
    """

    takes: ClassVar[Domain] = Domain.SPECTROGRAM
    gives: ClassVar[Domain] = Domain.SPECTROGRAM
    augments: ClassVar[bool] = True

    num_labels: int
    probability: float = 0.5
    num_freq_bands: int = 3
    num_time_bands: int = 3
    band_share: float = 0.3

    def __post_init__(self) -> None:
        if self.num_labels < 1 or min(self.num_freq_bands, self.num_time_bands) < 0:
            raise ConfigError(
                "num_labels or the number of bands is too small",
                found=f"{self.num_labels} labels, {self.num_freq_bands} and {self.num_time_bands} bands",
                wanted="at least 1 label, 0 bands or more",
            )
        if not 0 <= self.probability <= 1 or not 0 < self.band_share <= 1:
            raise ConfigError(
                "probability or band_share is out of range",
                found=f"{self.probability}, {self.band_share}",
                wanted="probability 0 to 1, band_share above 0, up to 1",
            )

    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Return the mixed samples, `label` of each as shares. Raises DataError for labels or shapes that don't fit."""
        spectra = [sample["spectrogram"] for sample in samples]
        shares = [label_shares(sample, self.num_labels) for sample in samples]
        if len({tuple(one.shape[1:]) for one in spectra}) > 1:
            raise DataError(
                "spectrograms of a batch differ in mel bands",
                found=sorted({one.shape[-1] for one in spectra}),
                wanted="one",
            )
        others = rng.permutation(len(samples))
        done = []
        for place, sample in enumerate(samples):
            spectrum, share = spectra[place], shares[place]
            other = int(others[place])
            if other != place and rng.random() < self.probability:
                frames, n_mels = spectrum.shape
                time_bands = self._bands(rng, self.num_time_bands, frames)
                freq_bands = self._bands(rng, self.num_freq_bands, n_mels)
                mask = band_mask(frames, n_mels, time_bands, freq_bands)
                spectrum, kept = mix_spectra(spectrum, spectra[other], mask)
                share = kept * share + (1 - kept) * shares[other]
            done.append({**sample, "spectrogram": spectrum, "label": share})
        return done

    def _bands(self, rng: np.random.Generator, most: int, size: int) -> list[Band]:
        return draw_bands(rng, int(rng.integers(0, most + 1)), int(size * self.band_share), size)


def mix_spectra(own: Tensor, other: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Return the spectrogram (frames, n_mels) that is `other` where `mask` is True, else `own`, and own's share.

    `other` may have fewer or more frames; what it has not, or has beyond, does not count.
    """
    common = min(own.shape[0], other.shape[0])
    mask = mask.to(own.device)[:common]
    mixed = torch.cat([torch.where(mask, other[:common], own[:common]), own[common:]])
    return mixed, 1 - int(mask.sum()) / max(1, own.numel())


def label_shares(sample: Sample, num_labels: int) -> Tensor:
    """Return a sample's `label` as float32 shares (num_labels,). Raises DataError where it is none or out of range."""
    label = sample.get("label")
    if isinstance(label, Tensor) and label.ndim == 1:
        if label.shape != (num_labels,):
            raise DataError("the shares of a label don't fit", found=tuple(label.shape), wanted=f"({num_labels},)")
        return label.float()
    if not isinstance(label, int | np.integer | Tensor) or not 0 <= int(label) < num_labels:
        raise DataError("the label is out of range", found=repr(label), wanted=f"an int from 0 to {num_labels - 1}")
    shares = torch.zeros(num_labels)
    shares[int(label)] = 1
    return shares
