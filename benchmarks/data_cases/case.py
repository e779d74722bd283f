"""The form of a case: `MEASURES`, `prepare` and `run` of a module in this folder.

    MEASURES: tuple[Measure, ...]
    def prepare(folder: Path, quick: bool) -> None: ...
    def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]: ...

`prepare` writes the inputs, the same on every machine. `run` is called in a process of its own: it warms up, measures,
and returns items per second with the outputs to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

OURS = "ours"


@dataclass(frozen=True)
class Measure:
    """One figure, ours against its peers; more is better."""

    name: str
    unit: str
    targets: Mapping[str, float] = field(default_factory=dict)
    """Peers, and how many times faster ours is to be than each."""
    references: tuple[str, ...] = ()
    """Contestants that are shown only."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """The distribution that a contestant can't run without."""
    tolerance: Mapping[str, float] = field(default_factory=dict)
    """Outputs that must agree between all who report them, with the largest relative gap."""
    at_least: Mapping[str, float] = field(default_factory=dict)
    """Lower bounds of outputs of ours; "rate" is the figure itself."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Upper bounds of outputs of ours."""
    no_worse: tuple[str, ...] = ()
    """Outputs (more is better) in which ours must be equal to or better than each peer's."""


class Case(Protocol):
    """A module of this folder."""

    MEASURES: tuple[Measure, ...]

    def prepare(self, folder: Path, quick: bool) -> None:
        """Write the inputs to a new folder."""
        ...

    def run(self, measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
        """Return items per second, and outputs."""
        ...
