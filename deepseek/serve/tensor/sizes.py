"""Which shapes a tensor from outside may have, before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepseek.errors import RequestError

MAX_DIMS = 16
"""Dimensions of a tensor."""
MAX_VALUES = 1 << 31
"""A tensor has fewer values than this; of an empty one the sizes that are not 0 count."""


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raise RequestError (400) for a shape that no array has, or only one that is too large."""
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
        found = list(shape) if len(shape) <= MAX_DIMS else f"{len(shape)} dimensions"
        raise wrong_input(name, "this is no shape", found=found, wanted=f"at most {MAX_DIMS} sizes of 0 or more")
    if math.prod(size for size in shape if size) >= MAX_VALUES:
        found = f"the shape {list(shape)}"[:96]
        raise wrong_input(name, "it is too large", found=found, wanted=f"fewer than {MAX_VALUES} values")


def wrong_input(
    name: str, problem: str, *, found: object = None, wanted: object = None, fix: str | None = None
) -> RequestError:
    """Return the error about one input; its name is shown short and in plain ASCII."""
    shown = ascii(name)[1:-1][:64]
    return RequestError(f"input '{shown}': {problem}", field=shown, found=found, wanted=wanted, fix=fix)
