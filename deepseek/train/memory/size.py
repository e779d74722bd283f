"""Sizes of memory as people write them: `8GB`, `600MiB`, `0.6` of what is free."""

from __future__ import annotations

import re

from deepseek.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
}
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)
_WANTED = "a size such as 8GB or 600MiB, or a share of the free memory such as 0.6"


def parse_budget(value: str | float, free: int | None) -> int:
    """Return the bytes that `value` means: a size, or a share (above 0, up to 1) of `free` bytes.

    KB, MB, GB are powers of ten, KiB, MiB, GiB (also K, M, G) powers of two. Raises ConfigError for anything else, and
    for a share where the free memory is unknown.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(value)
    match = _FORM.fullmatch(str(value))
    if match is None or match[2].lower() not in _UNITS:
        raise _wrong(value)
    number, unit = float(match[1]), match[2].lower()
    if not unit and 0 < number <= 1:
        if free is None:
            raise ConfigError(
                "the free memory of this machine is unknown", found=f"memory_budget: {value}", wanted="a size: 8GB"
            )
        return int(number * free)
    size = int(number * _UNITS[unit])
    if size < 1 << 20 or size > 1 << 60:
        raise ConfigError("memory_budget is out of range", found=repr(value), wanted=_WANTED)
    return size


def check_budget(value: str | float | None) -> None:
    """Raise ConfigError where `value` is no budget; None is none."""
    if value is not None:
        parse_budget(value, 1 << 40)


def in_words(size: int) -> str:
    """Return a size in the unit that reads best: `1.4 GiB`, `620 MiB`, `12 KiB`."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            number = size / unit
            return f"{number:.1f} {name}" if number < 100 else f"{number:,.0f} {name}"
    return f"{size} bytes"


def _wrong(value: object) -> ConfigError:
    return ConfigError("not a memory budget", found=repr(value), wanted=_WANTED)
