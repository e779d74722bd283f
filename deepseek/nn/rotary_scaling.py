"""Scaling of rotary frequencies, so that a model reads texts longer than those it was first trained on.

Three ways: "linear" (all positions closer together), "llama3" (slow pairs alone), "yarn" (slow pairs, and sharper
attention).
Sources: Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation",
arXiv:2306.15595; Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv:2407.21783; Peng et al. 2023, "YaRN:
Efficient Context Window Extension of Large Language Models", arXiv:2309.00071.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from deepseek.config import Config

_FIELDS = {
    "linear": set[str](),
    "llama3": {"original_length", "low_frequency_factor", "high_frequency_factor"},
    "yarn": {"original_length", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"},
}


class RotaryScaling(Config):
    """How rotary positions are stretched."""

    type: Literal["linear", "llama3", "yarn"]
    """`linear` divides all frequencies; `llama3` and `yarn` only those that turn seldom within `original_length`."""
    factor: float = Field(ge=1)
    """How many times longer the texts become."""
    original_length: int | None = Field(default=None, ge=1)
    """Longest text of the training before the stretch, in tokens; `llama3` and `yarn` need it."""
    low_frequency_factor: float = Field(default=1.0, gt=0)
    """llama3: pairs that turn less often than this within `original_length` are divided by `factor`."""
    high_frequency_factor: float = Field(default=4.0, gt=0)
    """llama3: pairs that turn more often than this are left as they are."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn: pairs that turn more often than this within `original_length` are left as they are."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn: pairs that turn less often than this are divided by `factor`."""
    mscale: float | None = Field(default=None, gt=0)
    """yarn: strength of the amplitude of cosines and sines, relative to `mscale_all_dim`."""
    mscale_all_dim: float | None = Field(default=None, gt=0)
    """yarn: strength of the factor on all attention scores (latent attention alone)."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn: the amplitude itself; null computes it from `factor`."""

    @model_validator(mode="after")
    def _fields_fit_type(self) -> RotaryScaling:
        fields = type(self).model_fields
        changed = {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}
        useless = sorted(changed - {"type", "factor"} - _FIELDS[self.type])
        if useless:
            raise ValueError(f"{', '.join(useless)} has no effect with type {self.type}; leave it out")
        if self.type != "linear" and self.original_length is None:
            raise ValueError(f"type {self.type} needs original_length, such as 8192")
        if self.type == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor {self.high_frequency_factor} must be above low_frequency_factor; "
                f"nearest that fits: {self.low_frequency_factor + 1}"
            )
        return self

    @property
    def amplitude(self) -> float:
        """The factor on cosines and sines."""
        if self.type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _sharpness(self.factor, self.mscale) / _sharpness(self.factor, self.mscale_all_dim)
        return _sharpness(self.factor, 1.0)

    @property
    def score_factor(self) -> float:
        """The factor on the attention scores of latent attention, besides 1 / sqrt(head_dim)."""
        if self.type != "yarn" or self.mscale_all_dim is None:
            return 1.0
        return _sharpness(self.factor, self.mscale_all_dim) ** 2

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the frequencies (pairs,), in radians a token and falling, as they are after the stretch."""
        if self.type == "linear":
            return frequencies / self.factor
        kept = self._llama3_share(frequencies) if self.type == "llama3" else self._yarn_share(frequencies, base)
        return frequencies * (kept + (1 - kept) / self.factor)

    def _llama3_share(self, frequencies: Tensor) -> Tensor:
        """Return for each pair how much of it stays as it was, from 0 to 1."""
        turns = frequencies * ((self.original_length or 0) / (2 * math.pi))
        low, high = self.low_frequency_factor, self.high_frequency_factor
        return ((turns - low) / (high - low)).clamp(0, 1)

    def _yarn_share(self, frequencies: Tensor, base: float) -> Tensor:
        pairs = frequencies.shape[0]
        first = max(math.floor(self._pair_with_turns(self.beta_fast, pairs, base)), 0)
        last = min(math.ceil(self._pair_with_turns(self.beta_slow, pairs, base)), 2 * pairs - 1)
        index = torch.arange(pairs, dtype=torch.float32, device=frequencies.device)
        return 1 - ((index - first) / (last - first if last != first else 1e-3)).clamp(0, 1)

    def _pair_with_turns(self, turns: float, pairs: int, base: float) -> float:
        """Return the (broken) number of the pair that turns so often within the original length."""
        return pairs * math.log((self.original_length or 1) / (turns * 2 * math.pi)) / math.log(base)


def _sharpness(factor: float, strength: float) -> float:
    return 1.0 + 0.1 * strength * math.log(factor)
