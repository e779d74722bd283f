"""Widths scaled by a multiplier and rounded to what hardware likes: multiples of 8, never more than a tenth less.

Source: the code of Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381.
"""

from __future__ import annotations


def round_channels(channels: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Return the multiple of `divisor` nearest to `channels`, one more where it is under 90% of it."""
    rounded = max(minimum or divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
