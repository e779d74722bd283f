"""What every function on sound asks of its input, and what it says where the input can't be used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepseek.errors import ConfigError, DataError

MAX_SAMPLE_RATE = 768_000


def check_waveform(waveform: object, at_least: int = 1, purpose: str = "a sound") -> Tensor:
    """Return the waveform (..., time), float32 or float64.

    Raises DataError where it is no such tensor, has fewer than `at_least` samples, or holds NaN or infinity.
    """
    if not isinstance(waveform, Tensor) or waveform.dtype not in (torch.float32, torch.float64):
        found = waveform.dtype if isinstance(waveform, Tensor) else type(waveform).__name__
        raise DataError(
            "the waveform is no tensor of floats",
            found=found,
            wanted="float32, full scale 1",
            fix="16-bit samples: waveform.float() / 32768",
        )
    if waveform.ndim == 0 or waveform.shape[-1] < at_least or waveform.numel() == 0:
        raise DataError(
            f"the waveform is too short for {purpose}",
            found=f"shape {tuple(waveform.shape)}",
            wanted=f"(..., time) with at least {at_least} sample{'s' if at_least > 1 else ''}",
            fix="leave it out or pad it",
        )
    # a sum meets every NaN and infinity, at a fraction of the cost of testing each sample
    if not torch.isfinite(waveform.detach().sum()) and (bad := int((~torch.isfinite(waveform)).sum())):
        raise DataError(
            "the waveform is not finite", found=f"{bad} samples are NaN or infinite", wanted="finite samples"
        )
    return waveform


def check_sample_rate(sample_rate: object) -> int:
    """Return the rate in Hz. Raises ConfigError for one that no sound has."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or not 1 <= sample_rate <= MAX_SAMPLE_RATE:
        raise ConfigError(
            "the sample rate is out of range", found=repr(sample_rate), wanted=f"an int, 1 to {MAX_SAMPLE_RATE} Hz"
        )
    return sample_rate


def sample_rate_of(sample: dict[str, Any]) -> int:
    """Return a sample's `sample_rate`. Raises DataError where it has none or one out of range."""
    if "sample_rate" not in sample:
        raise DataError("the sample has a waveform but no 'sample_rate'", found=", ".join(sorted(sample)), wanted="Hz")
    try:
        return check_sample_rate(sample["sample_rate"])
    except ConfigError as error:
        raise DataError(error.problem, found=error.found, wanted=error.wanted) from None
