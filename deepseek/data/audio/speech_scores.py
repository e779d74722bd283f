"""How much a frame of sound looks like speech above noise: by its energy, or by a statistical model of its spectrum.

Both follow the noise as it changes, quickly in pauses and slowly in speech. Frames come one at a time, so that a score
does not depend on how a stream is cut. Not here: where speech begins and ends (`endpointer`).
Source of the second: Sohn, Kim and Sung 1999, "A statistical model-based voice activity detection",
https://doi.org/10.1109/97.736233, with the decision-directed estimate of Ephraim and Malah 1984,
https://doi.org/10.1109/TASSP.1984.1164453.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.float64]

_QUIETEST_DB = -65.0  # noise is never held for quieter, so that the last bit of a silent file is no speech
_TINY = 1e-12


class SpeechScore(ABC):
    """A score of each frame in turn; `start` and `stop` are what speech has to reach, and to fall below."""

    start: float
    stop: float

    @abstractmethod
    def settle(self, frames: Sequence[Frame]) -> None:
        """Take a first estimate of the noise from the quietest of these frames."""

    @abstractmethod
    def score(self, frame: Frame) -> float:
        """Return the frame's score, and learn the noise from it."""


class EnergyScore(SpeechScore):
    """Decibels above the noise floor."""

    start, stop = 6.0, 4.0
    _PAUSE, _RISE = 0.05, 0.01  # a share of the difference in each frame of a pause; dB in each frame of speech

    def __init__(self) -> None:
        self._floor = _QUIETEST_DB

    def settle(self, frames: Sequence[Frame]) -> None:
        levels = np.sort([_level(frame) for frame in frames])
        self._floor = max(_QUIETEST_DB, float(levels[: _quiet_part(len(levels))].mean()))

    def score(self, frame: Frame) -> float:
        level = _level(frame)
        above = level - self._floor
        self._floor += self._RISE if above >= self.stop else self._PAUSE * above
        self._floor = max(_QUIETEST_DB, self._floor)
        return above


class LikelihoodScore(SpeechScore):
    """The mean over the FFT's bins of the log ratio of two likelihoods: speech in noise, and noise alone.

    Each bin is Gaussian under both, with the noise's variance known from before and speech's from the bin itself and
    the frame before. It finds speech by its shape too, not by its loudness alone.
    """

    start, stop = 0.2, 0.08
    _PAUSE, _SPEECH = 0.05, 0.001  # how much of a frame's spectrum the noise's takes over
    _MEMORY = 0.98  # weight of the frame before in the estimate of speech
    _MOST = 1e3

    def __init__(self, window: int) -> None:
        self._window: Frame = np.hanning(window + 2)[1:-1]
        self._size = 1 << (window - 1).bit_length()
        self._least = 10 ** (_QUIETEST_DB / 10) * float(np.square(self._window).sum())
        self._noise: Frame = np.full(self._size // 2 + 1, self._least)
        self._speech: Frame = np.zeros_like(self._noise)

    def settle(self, frames: Sequence[Frame]) -> None:
        quiet = sorted(frames, key=_level)[: _quiet_part(len(frames))]
        mean = np.mean([self._power(frame) for frame in quiet], axis=0)
        # few frames make a rough estimate, which neighbouring bins smooth
        smooth = np.convolve(np.pad(mean, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
        self._noise = np.maximum(smooth, self._least)

    def score(self, frame: Frame) -> float:
        power = self._power(frame)
        posterior = np.minimum(power / self._noise, self._MOST)
        fresh = np.maximum(posterior - 1, 0)
        prior = self._MEMORY * np.minimum(self._speech / self._noise, self._MOST) + (1 - self._MEMORY) * fresh
        gain = prior / (1 + prior)
        self._speech = gain**2 * power
        found = float(np.mean(posterior * gain - np.log1p(prior)))
        share = self._SPEECH if found >= self.stop else self._PAUSE
        self._noise = np.maximum(self._noise + share * (power - self._noise), self._least)
        return found

    def _power(self, frame: Frame) -> Frame:
        spectrum = np.fft.rfft(frame * self._window, n=self._size)
        power: Frame = np.square(spectrum.real) + np.square(spectrum.imag)
        power[0] = power[1]  # an offset is neither noise nor speech
        return power


def _level(frame: Frame) -> float:
    """Return the power around the mean, in dB of full scale."""
    return 10 * float(np.log10(np.var(frame) + _TINY))


def _quiet_part(frames: int) -> int:
    """Return how many of the frames count as pause: a third of a short time, a tenth of a long one."""
    return max(1, min(frames // 3, max(10, frames // 10)))
