"""What a run has done so far, and what it did in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class StepCount:
    """Rows that came to a step, left it, and could not be used there."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    bad: int = 0

    def add(self, counts: Sequence[int]) -> None:
        """Add (rows in, rows out, bad)."""
        self.rows_in += counts[0]
        self.rows_out += counts[1]
        self.bad += counts[2]


@dataclass(frozen=True)
class Progress:
    """Where a run is: given to `progress` after each block. Stages are counted from 1."""

    stage: int
    stages: int
    blocks_done: int
    blocks: int
    rows_read: int
    rows_written: int
    bad: int
    seconds: float


@dataclass
class RunReport:
    """What a run did; its print is a table. `resumed_blocks` were done by an earlier run that was interrupted."""

    steps: list[StepCount] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """The files written, below the output folder (of sounds and images: their folders)."""
    rows_of_split: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    blocks: int = 0
    resumed_blocks: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """How many bad rows for which reason."""
    seconds: float = 0.0

    @property
    def rows_read(self) -> int:
        """Rows that were read, with the bad ones."""
        return self.steps[0].rows_in

    @property
    def rows_written(self) -> int:
        """Rows in the output."""
        return self.steps[-1].rows_out

    @property
    def bad(self) -> int:
        """Rows that could not be used, at any step."""
        return sum(step.bad for step in self.steps)

    @property
    def rows_per_second(self) -> float:
        """Rows read in a second of this run; too many where blocks are from before."""
        return self.rows_read / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        width = max(len(step.name) for step in self.steps)
        lines = [f"{'step':{width}}  {'rows in':>12}  {'rows out':>12}  {'bad':>8}"]
        lines += [f"{one.name:{width}}  {one.rows_in:>12}  {one.rows_out:>12}  {one.bad:>8}" for one in self.steps]
        again = f", {self.resumed_blocks} of {self.blocks} blocks from before" if self.resumed_blocks else ""
        size = f"{self.bytes_read / 1e6:.1f} MB read, {self.bytes_written / 1e6:.1f} MB in {len(self.files)} files"
        lines.append(f"{size}, {self.seconds:.1f} s, {self.rows_per_second:.0f} rows/s{again}")
        lines += [f"bad: {count} x {reason}" for reason, count in sorted(self.reasons.items())]
        return "\n".join(lines)
