"""What a probe reports: one thing looked at, how it stands, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    `problem`: something will fail, or hardware that is there can't be used. `warning`: it works, but slower or with
    a limit. Both say `why` it matters and the command that mends it (`fix`). Where the status is `ok`, `fix` is
    what to do if more is wanted (the install line of an optional package).
    """

    area: str
    name: str
    status: Status
    found: str
    why: str = ""
    fix: str = ""


def ok(area: str, name: str, found: str, fix: str = "") -> Finding:
    """Return a finding that is fine as it is."""
    return Finding(area, name, "ok", found, fix=fix)


def warning(area: str, name: str, found: str, *, why: str, fix: str) -> Finding:
    """Return a finding that costs speed or sets a limit."""
    return Finding(area, name, "warning", found, why, fix)


def problem(area: str, name: str, found: str, *, why: str, fix: str) -> Finding:
    """Return a finding that will make something fail."""
    return Finding(area, name, "problem", found, why, fix)


def gib(size: float) -> str:
    """Return a number of bytes in GiB, for people."""
    return f"{size / 2**30:.1f} GiB"


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: `"2.13.0+cpu"` -> `(2, 13, 0)`; empty where there are none."""
    found: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = part[: next((at for at, letter in enumerate(part) if not letter.isdigit()), len(part))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
