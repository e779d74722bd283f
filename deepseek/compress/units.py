"""Sizes, times and losses of quality as people write them: `1.2MB`, `20ms`, `10m`, `1%`. Not here: what they limit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from deepseek.errors import ConfigError

_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ%]*)\s*", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES, _LATENCIES, _DURATIONS = "1.2MB, 600kB or 4MiB", "20ms, 500us or 1.5s", "30s, 10m or 1h"
DROP_WANTED = "a share of the original's value such as 1%, or an amount in the metric's own units such as 0.01"


class Drop(NamedTuple):
    """How much worse a metric may be: `amount` of the original's value where `relative`, else in its own units."""

    amount: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.amount:.4g}" if not self.relative else f"{self.amount * 100:.4g}%"


def parse_size(text: str, name: str = "size") -> int:
    """Return bytes. kB, MB, GB are powers of ten (as disks have them), KiB, MiB, GiB powers of two.

    Raises ConfigError, naming the setting, for a number without a unit, another unit, or nothing at all.
    """
    return max(1, int(_number(text, name, _BYTES, _SIZES)))


def parse_latency(text: str, name: str = "latency") -> float:
    """Return milliseconds of `20ms`, `500us`, `1.5s`. Raises ConfigError."""
    return _number(text, name, _MILLISECONDS, _LATENCIES)


def parse_seconds(text: str, name: str = "time") -> float:
    """Return seconds of `30s`, `10m`, `1h`. Raises ConfigError."""
    return _number(text, name, _SECONDS, _DURATIONS)


def parse_drop(text: str | float, name: str = "max_drop") -> Drop:
    """Return the loss of quality that `1%` (of the original's value) or `0.01` (of the metric itself) means.

    Raises ConfigError for anything else, below zero included.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        if math.isfinite(text) and text >= 0:
            return Drop(float(text), relative=False)
    elif isinstance(text, str):
        match = _FORM.fullmatch(text)
        if match is not None and match[2] in {"", "%"}:
            share = match[2] == "%"
            return Drop(float(match[1]) / (100 if share else 1), share)
    raise ConfigError(f"{name} is no loss of quality", found=repr(text), wanted=DROP_WANTED)


def _number(text: str, name: str, units: Mapping[str, float], examples: str) -> float:
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"{name} can't be read", found=repr(text), wanted=f"a number and its unit: {examples}")
    number, unit = float(match[1]), match[2].lower()
    if unit not in units:
        problem = f"{name} has no unit" if not unit else f"{name} has an unknown unit"
        raise ConfigError(problem, found=repr(text), wanted=f"a number and its unit: {examples}")
    if number <= 0:
        raise ConfigError(f"{name} must be more than zero", found=repr(text), wanted=examples)
    return number * units[unit]
