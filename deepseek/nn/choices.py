"""Ways to compute the same thing, where which one is fastest depends on the machine and the shapes: a small registry.

Code that has a choice asks `current(name)`; None means that nobody chose, and its own rule holds. Who measures and
chooses is `deepseek.train.autotune`. All options of a choice compute the same, up to rounding (and the random numbers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deepseek.errors import ConfigError, did_you_mean

OPTIONS: dict[str, tuple[str, ...]] = {
    "attention": ("plain", "fused"),  # matrix products one by one, or torch's fused kernel
    "dropout": ("torch", "hash"),  # in compiled code on a CPU: the compiler's random numbers, or hashed places
}
"""The choices there are, and the options of each."""

_current: dict[str, str] = {}


def current(name: str) -> str | None:
    """Return the option in force, None where the code's own rule holds. A compiler that reads this notes a change."""
    return _current.get(name)


def state() -> dict[str, str]:
    """Return the options in force, for a checkpoint."""
    return dict(_current)


@contextmanager
def using(chosen: Mapping[str, str]) -> Iterator[None]:
    """Let these options be in force within the block, and those from before after it.

    Raises ConfigError for an unknown choice or option.
    """
    _check(chosen)
    before = dict(_current)
    _current.update(chosen)
    try:
        yield
    finally:
        _current.clear()
        _current.update(before)


def known(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return what is still a choice and an option of it: what another version wrote may not be."""
    return {name: option for name, option in chosen.items() if option in OPTIONS.get(name, ())}


def _check(chosen: Mapping[str, str]) -> None:
    for name, option in chosen.items():
        if name not in OPTIONS:
            raise ConfigError("unknown choice", found=repr(name), fix=did_you_mean(name, OPTIONS))
        if option not in OPTIONS[name]:
            raise ConfigError(f"{name} has no option {option!r}", wanted=" or ".join(OPTIONS[name]))
