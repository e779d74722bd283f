"""A plan cut into stages: what can be done block by block without looking at other blocks.

    rows:   blocks of files, or of the stage before -> steps of one row -> output files, or rows that wait (`spill`)
    decide: the keys of all blocks that wait -> which rows are doubles

Not here: doing a block (`task`), their order and what is done already (`run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepseek.data.etl.steps import Dedup, Shuffle, Step, Write

Source = Literal["files", "dedup", "shuffle"]


@dataclass(frozen=True)
class Stage:
    """One stage. Numbers of steps count from 1, the reading; `before` is the stage whose spill it takes."""

    number: int
    source: Source
    before: int = -1
    steps: tuple[tuple[int, Step], ...] = ()
    exchange: tuple[int, Dedup | Shuffle] | None = None
    """The step that comes next and needs other blocks; none before the output."""
    write: tuple[int, Write] | None = None
    decide: Dedup | None = None
    """What the stage decides, instead of working on rows."""
    counted: int = 0
    """The step whose rows out are those that this stage takes from the stage before."""


def cut_stages(steps: Sequence[Step], write: Write) -> list[Stage]:
    """Return the stages of a plan, in order."""
    stages: list[Stage] = []
    source: Source = "files"
    before, counted, held = -1, 0, list[tuple[int, Step]]()
    for number, step in enumerate(steps, 2):
        if not isinstance(step, (Dedup, Shuffle)):
            held.append((number, step))
            continue
        place = len(stages)
        stages.append(Stage(place, source, before, tuple(held), (number, step), None, None, counted))
        before, counted, held = place, number, []
        if isinstance(step, Dedup):
            stages.append(Stage(place + 1, "dedup", place, decide=step))
            source = "dedup"
        else:
            source = "shuffle"
    last = (len(steps) + 2, write)
    return [*stages, Stage(len(stages), source, before, tuple(held), None, last, None, counted)]
