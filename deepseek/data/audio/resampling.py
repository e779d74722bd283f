"""Another sample rate: a polyphase filter whose kernel is a windowed sinc; batched, differentiable, exact ratios.

Rates are divided by their common factor, to `new` samples out for `old` samples in. Output n is a weighted sum of the
inputs around n * old / new; only `new` sets of weights occur. Where their table is small they are one strided
convolution, else the inputs of each output are gathered. Not here: the stage (`resample`).
Sources: Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/; Kaiser 1974 (the window).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.audio.checks import check_sample_rate, check_waveform
from deepseek.errors import ConfigError, DataError

_ZEROS = 64  # zero crossings of the sinc to each side: what the pass band's edge costs
_ROLLOFF = 0.94  # of the lower rate's half: the middle of the edge; all of it lies below 1
_KAISER = 12.0  # beta: images and aliases are about 120 dB down
_DENSE, _LARGEST, _BLOCK = 1 << 20, 1 << 26, 1 << 22


def resample_audio(waveform: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Return the waveform (..., time) at `new_rate`: (..., ceil(time * new_rate / old_rate)).

    Frequencies up to 88 % of half the lower rate pass unchanged, those above half of it are gone. Raises DataError for
    a waveform that can't be used, ConfigError for rates that are out of range or have too large a ratio.
    """
    check_sample_rate(old_rate)
    check_sample_rate(new_rate)
    check_waveform(waveform)
    old, new = reduced(old_rate, new_rate)
    if old == new:
        return waveform
    time = waveform.shape[-1]
    count = -(-time * new // old)
    width = reach(old, new)
    blocks = -(-count // new)
    padded = F.pad(waveform.reshape(-1, time), (width, max(0, blocks * old + width - time)))
    return resample_blocks(padded, old, new, blocks)[:, :count].reshape(*waveform.shape[:-1], count)


class ResampleStream:
    """A waveform that comes in pieces, resampled: the pieces returned, joined, are what `resample_audio` returns.

    Holds back what the kernel has to see first: about 64 samples of the lower rate, and up to one period of the ratio.
    Raises ConfigError for rates that are out of range.
    """

    def __init__(self, old_rate: int, new_rate: int) -> None:
        self._old, self._new = reduced(check_sample_rate(old_rate), check_sample_rate(new_rate))
        self._width = reach(self._old, self._new)
        self._held: Tensor | None = None
        self._in = self._out = 0

    def push(self, waveform: Tensor) -> Tensor:
        """Return what is ready, (..., time), maybe of no sample. Raises DataError."""
        if self._old == self._new or waveform.shape[-1] == 0:
            return waveform
        check_waveform(waveform)
        if self._held is None:
            self._held = waveform.new_zeros(*waveform.shape[:-1], self._width)
        if self._held.shape[:-1] != waveform.shape[:-1]:
            raise DataError(
                "a piece of the stream has another shape",
                found=str(tuple(waveform.shape[:-1])),
                wanted=str(tuple(self._held.shape[:-1])),
            )
        self._in += waveform.shape[-1]
        self._held = torch.cat([self._held, waveform], dim=-1)
        return self._take(max(0, (self._held.shape[-1] - 2 * self._width) // self._old))

    def finish(self) -> Tensor:
        """Return the rest; the stream is as new then."""
        if self._held is None:
            return torch.zeros(0)
        left = -(-self._in * self._new // self._old) - self._out
        blocks = -(-left // self._new)
        missing = blocks * self._old + 2 * self._width - self._held.shape[-1]
        self._held = F.pad(self._held, (0, max(0, missing)))
        rest = self._take(blocks)[..., :left]
        self._held, self._in, self._out = None, 0, 0
        return rest

    def _take(self, blocks: int) -> Tensor:
        held = self._held
        if held is None or blocks == 0:
            return torch.zeros(0) if held is None else held[..., :0]
        rows = held.reshape(-1, held.shape[-1])[:, : blocks * self._old + 2 * self._width]
        found = resample_blocks(rows, self._old, self._new, blocks)
        self._held = held[..., blocks * self._old :]
        self._out += blocks * self._new
        return found.reshape(*held.shape[:-1], -1)


def reduced(old_rate: int, new_rate: int) -> tuple[int, int]:
    """Return the rates without their common factor. Raises ConfigError where their table would be too large."""
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    if old != new and (2 * reach(old, new) + 1) * new > _LARGEST:
        raise ConfigError(
            "these sample rates have no simple ratio",
            found=f"{old_rate} to {new_rate}, {old}:{new}",
            wanted="rates with a common factor, such as 44100 and 16000",
            fix="resample to a rate near it first",
        )
    return old, new


def reach(old: int, new: int) -> int:
    """Return how many inputs to each side an output looks at."""
    return math.ceil(_ZEROS * max(1.0, old / new) / _ROLLOFF)


def resample_blocks(padded: Tensor, old: int, new: int, blocks: int) -> Tensor:
    """Return (rows, blocks * new) of rows (rows, at least blocks * old + 2 * reach), with `reach` samples in front."""
    width = reach(old, new)
    if new * (2 * width + old) <= _DENSE:
        kernel = _dense_kernel(old, new, padded.device, padded.dtype)
        used = padded[:, : (blocks - 1) * old + kernel.shape[-1]]
        return F.conv1d(used.unsqueeze(1), kernel, stride=old).transpose(1, 2).flatten(1)
    table = _table(old, new, padded.device, padded.dtype)
    taps = torch.arange(2 * width + 1, device=padded.device)
    parts = []
    for outputs in torch.split(torch.arange(blocks * new, device=padded.device), max(1, _BLOCK // len(taps))):
        places = (outputs * old // new).unsqueeze(1) + taps
        parts.append((padded[:, places] * table[outputs % new]).sum(-1))
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=16)
def _table(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (new, 2 * reach + 1): the weights of output n of a period, for the inputs around n * old // new."""
    width = reach(old, new)
    outputs = np.arange(new, dtype=np.int64)
    behind = (outputs * old % new) / new  # how far the output is behind the input at its middle
    distance = np.arange(-width, width + 1) - behind[:, None]
    scale = min(1.0, new / old) * _ROLLOFF
    places = distance * scale
    inside = np.clip(1 - (places / _ZEROS) ** 2, 0, None)
    window = np.where(np.abs(places) < _ZEROS, np.i0(_KAISER * np.sqrt(inside)) / np.i0(_KAISER), 0)
    weights = scale * np.sinc(places) * window
    weights /= weights.sum(axis=1, keepdims=True)  # a constant stays what it is
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=dtype, device=device)


@lru_cache(maxsize=16)
def _dense_kernel(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (new, 1, taps): the rows of the table, each where its inputs are within a period."""
    with torch.inference_mode(False):
        table = _table(old, new, device, dtype)
        first = torch.arange(new, device=device) * old // new
        kernel = table.new_zeros(new, table.shape[1] + int(first[-1]))
        places = first.unsqueeze(1) + torch.arange(table.shape[1], device=device)
        return kernel.scatter(1, places, table).unsqueeze(1)
