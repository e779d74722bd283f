"""How far one form of a model is from the original, in numbers, and whether that is still the same model.

Limits: float32 1e-4 of the largest output (or of 1); bf16 25 dB of signal to noise; int8 20 dB. A 16-bit or int8 form
that misses its limit passes nevertheless where the task's own figure is at most 1% worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.export.runtimes.runtime import Precision
from deepseek.quantization.report import ratio_db

FP32_RELATIVE = 1e-4
"""Largest error of a float32 form, as a part of the output's largest value where that is above 1."""

LEAST_SNR_DB: Mapping[str, float] = {"bf16": 25.0, "int8": 20.0}
"""Least signal-to-noise ratio of any output, in dB. bf16 has 8 bits of fraction: one rounding alone is 53 dB."""

METRIC_DROP = 0.01
"""How much worse the task's figure may be: absolute for shares (accuracy, map), relative for losses and errors."""

_SHARES = ("map", "accuracy", "dice", "iou", "r2", "recall_at_1")
_ERRORS = ("wer", "cer", "token_error_rate", "mae", "perplexity", "loss")


class Deviation(NamedTuple):
    """The difference of two answers; the worst over their outputs."""

    max_abs_error: float
    relative_error: float
    """Each error divided by the output's largest value where that is above 1."""
    snr_db: float
    """10 log10(power of the original / power of the difference), at most 200; of floating-point outputs."""
    output: str
    """The output with the largest relative error."""


class Figure(NamedTuple):
    """The one number that says how good a model is at its task."""

    name: str
    value: float
    is_share: bool
    """From 0 to 1, more is better; else less is better."""

    def drop_from(self, before: Figure) -> float:
        """Return how much worse this is than `before`: absolute for shares, relative for errors; negative if better."""
        if self.is_share:
            return before.value - self.value
        return (self.value - before.value) / max(abs(before.value), 1e-12)


def deviation(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Deviation:
    """Compare two answers by name. A missing output, another shape or a new NaN is an infinite error.

    An exported file calls an output `NAME_out` where NAME is an input too.
    """
    worst = Deviation(0.0, 0.0, 200.0, next(iter(wanted), ""))
    for name, value in wanted.items():
        one = _of_output(name, value, found.get(name, found.get(f"{name}_out")))
        leader = one if one.relative_error > worst.relative_error else worst
        worst = Deviation(
            max(one.max_abs_error, worst.max_abs_error),
            leader.relative_error,
            min(one.snr_db, worst.snr_db),
            leader.output,
        )
    return worst


def deviation_over(wanted: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]) -> Deviation:
    """Compare several pairs of answers: the worst errors, and the signal-to-noise ratio over all of them together.

    The ratio of one small answer would say little: a single number may happen to be near zero.
    """
    each = [deviation(one, other) for one, other in zip(wanted, found, strict=True)]
    worst = max(each, key=lambda one: one.relative_error)._replace(max_abs_error=max(one.max_abs_error for one in each))
    if math.isinf(worst.relative_error):
        return worst._replace(snr_db=-200.0)
    return worst._replace(snr_db=deviation(_joined(wanted, wanted), _joined(found, wanted)).snr_db)


def _joined(answers: Sequence[Mapping[str, Tensor]], names: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return each output of all answers in one row, by the names of the original."""
    return {
        name: torch.cat([one[name if name in one else f"{name}_out"].flatten() for one in answers]) for name in names[0]
    }


def main_figure(figures: Mapping[str, float]) -> Figure | None:
    """Return the figure that stands for all that a task measures; None where it is not known or not finite."""
    for name in (*_SHARES, *_ERRORS):
        if name in figures and math.isfinite(figures[name]):
            return Figure(name, float(figures[name]), name in _SHARES)
    return None


def objection(
    precision: Precision, seen: Deviation, before: Figure | None = None, after: Figure | None = None
) -> str | None:
    """Return what speaks against a form of this precision; None where it is still the same model."""
    drop = after.drop_from(before) if before is not None and after is not None else None
    if precision == "fp32":
        if seen.relative_error <= FP32_RELATIVE:
            return None
        return f"output '{seen.output}' is off by {seen.relative_error:.1e}, allowed {FP32_RELATIVE:.0e}"
    least = LEAST_SNR_DB[precision]
    if seen.snr_db >= least or (drop is not None and drop <= METRIC_DROP):
        return None
    figure = "" if drop is None or after is None else f", and {after.name} is {drop:.1%} worse"
    return f"output '{seen.output}' has {seen.snr_db:.1f} dB of signal to noise, wanted {least:.0f} dB{figure}"


def _of_output(name: str, wanted: Tensor, found: Tensor | None) -> Deviation:
    if found is None or found.shape != wanted.shape:
        return Deviation(math.inf, math.inf, -200.0, name)
    if not wanted.numel():
        return Deviation(0.0, 0.0, 200.0, name)
    exact, other = wanted.to(torch.float64), found.to(torch.float64)
    special = ~exact.isfinite()
    same = special & ((exact == other) | (exact.isnan() & other.isnan()))
    error = torch.where(same, 0.0, (exact - other).abs()).nan_to_num(math.inf, math.inf)
    finite = torch.where(special, 0.0, exact)
    largest = float(error.max())
    relative = largest / max(1.0, float(finite.abs().max()))
    if not wanted.is_floating_point():
        return Deviation(largest, relative, 200.0, name)
    noise = float(error.square().sum())
    snr = -200.0 if math.isinf(noise) else ratio_db(float(finite.square().sum()), noise)
    return Deviation(largest, relative, max(snr, -200.0), name)
