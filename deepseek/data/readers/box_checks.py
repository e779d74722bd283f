"""What to do with a box that does not lie inside its image: one rule for all readers of boxes.

Boxes are x1 y1 x2 y2 in pixels. Up to one pixel outside counts as rounding (tools differ in where they count from) and
is cut off. A box further outside, without area, or not finite is bad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import ConfigError, DataError

OnBadBox = Literal["raise", "clip", "drop"]
_ROUNDING = 1.0


def check_box_policy(on_bad_box: str) -> None:
    """Raise ConfigError for an unknown policy."""
    if on_bad_box not in get_args(OnBadBox):
        raise ConfigError("unknown on_bad_box policy", found=repr(on_bad_box), wanted="'raise', 'clip' or 'drop'")


def settle_boxes(
    boxes: NDArray[np.float64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    on_bad_box: OnBadBox,
    where: Callable[[int], str],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (boxes inside their images, which of them to keep); arrays (n, 4), (n,), (n,).

    A bad box raises DataError naming `where(row)`, is cut to the image ("clip"; nothing left drops it), or dropped.
    """
    limits = np.stack([widths, heights, widths, heights], axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        outside = ((boxes < -_ROUNDING) | (boxes > limits + _ROUNDING)).any(axis=1)
        inside = np.clip(boxes, 0.0, limits)
        area = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    bad = outside | ~area | ~np.isfinite(boxes).all(axis=1)
    if on_bad_box == "raise" and bad.any():
        row = int(bad.argmax())
        x1, y1, x2, y2 = boxes[row].tolist()
        raise DataError(
            f"{where(row)}: the box is not inside its image",
            found=f"x1={x1:g} y1={y1:g} x2={x2:g} y2={y2:g}",
            wanted=f"x1 < x2 and y1 < y2 within {widths[row]} x {heights[row]} pixels",
            fix="correct it, or pass on_bad_box='clip' or 'drop'",
        )
    keep = area & np.isfinite(boxes).all(axis=1) if on_bad_box == "clip" else ~bad
    return inside.astype(np.float32), keep
