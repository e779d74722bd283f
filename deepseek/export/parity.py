"""Does an exported model answer like the original? Both run on the same inputs, over several sizes.

The tolerance is relative to the largest value of the reference output where that is above 1, and absolute below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ParityError
from deepseek.export.runtimes import Runtime
from deepseek.export.signature import Axes, axis_sizes, resized

_LONGEST = 512  # a default check is no longer than this along any axis, to bound its memory and time
_TEXT = frozenset({"batch", "time", "decoder_time"})  # axes of which one is enough

Explain = Callable[[Mapping[str, Tensor]], str | None]
"""Says, for inputs at which two runtimes differ, where the difference begins; None where it can't tell."""


class Check(NamedTuple):
    """One comparison. `top1_agreement`: the share of positions whose largest value along the last axis is the same."""

    shape: tuple[int, ...]
    """Sizes of the named axes, in their order (for text: batch, time)."""
    max_abs_error: float
    top1_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return {**self._asdict(), "shape": list(self.shape)}


def default_checks(example: Mapping[str, Tensor], axes: Axes, longest: int | None = None) -> list[dict[str, int]]:
    """Return up to four sets of sizes: all ones, the example's, other ones, and the batch of one at full length."""
    sizes = axis_sizes(example, axes)
    if not sizes:
        return [{}]
    long = min(longest or 0, _LONGEST)
    other = {axis: max(size - 1, 1) if axis != "batch" else size + 1 for axis, size in sizes.items()}
    full = {a: 1 if a == "batch" else max(size, long) if a in _TEXT else size for a, size in sizes.items()}
    checks = [dict.fromkeys(sizes, 1) if set(sizes) <= _TEXT else {**sizes, "batch": 1}, sizes, other, full]
    return [check for index, check in enumerate(checks) if check not in checks[:index]]


def compare(
    reference: Runtime,
    candidate: Runtime,
    example: Mapping[str, Tensor],
    axes: Axes,
    checks: Sequence[Mapping[str, int]],
    tolerance: float,
    explain: Explain | None = None,
) -> tuple[Check, ...]:
    """Run both at each set of sizes and return what was seen.

    Raises ParityError at the first that differs too much, with what `explain` says of where that begins.
    """
    results = []
    for seed, sizes in enumerate(checks):
        inputs = resized(example, axes, sizes, seed)
        wanted, found = reference.run(inputs), candidate.run(inputs)
        try:
            errors = [_compare_output(name, wanted[name], found.get(name), dict(sizes), tolerance) for name in wanted]
        except ParityError as error:
            said = explain(inputs) if explain is not None else None
            if said is None:
                raise
            raise ParityError(
                error.problem, found=f"{error.found}; {said}", wanted=error.wanted, fix=error.fix
            ) from error
        agreement = min(_top1(wanted[name], found[name]) for name in wanted)
        results.append(Check(tuple(sizes.values()), max(errors), agreement))
    return tuple(results)


def _compare_output(name: str, wanted: Tensor, found: Tensor | None, sizes: dict[str, int], tolerance: float) -> float:
    if found is None or found.shape != wanted.shape:
        raise ParityError(
            f"output '{name}' has another shape at {sizes}",
            found=None if found is None else tuple(found.shape),
            wanted=tuple(wanted.shape),
            fix="nothing was written; name the axes that change in `axes`",
        )
    if not wanted.numel():
        return 0.0
    exact = wanted.to(torch.float64)
    error = float((exact - found.to(torch.float64)).abs().max())
    allowed = tolerance * max(1.0, float(exact.abs().max()))
    if not error <= allowed:
        raise ParityError(
            f"output '{name}' differs from the original at {sizes}",
            found=f"max abs error {error:.3g}",
            wanted=f"at most {allowed:.3g} (tolerance {tolerance:g})",
            fix="nothing was written; check the model for randomness, or state a larger tolerance",
        )
    return error


def _top1(wanted: Tensor, found: Tensor) -> float:
    if not wanted.numel() or wanted.dim() < 2:
        return 1.0
    return float((wanted.double().argmax(-1) == found.double().argmax(-1)).double().mean())
