"""Gradient accumulation counted in items: a step takes micro-batches until they hold at least so many tokens.

Where lengths differ, a fixed number of micro-batches makes steps of very different size; a fixed number of tokens keeps
the noise of the gradient, and with it the right learning rate, the same. Which micro-batches a step takes follows from
where it begins, so a run goes on from a position alone. Not here: the division by the items, which is in `step.py`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from typing import Any, NamedTuple

from deepseek.errors import ConfigError, DataError
from deepseek.tasks.task import Task
from deepseek.train.batches import BatchStream

_MOST_EMPTY = 1000
_COUNTED = 100_000


class StepBatches(NamedTuple):
    """The micro-batches of one step."""

    batches: list[Any]
    items: int
    """What the task counts in them."""
    position: int
    """Micro-batches taken from the stream when this step is done: where the next one begins."""


class TokenAccumulation:
    """Groups the micro-batches of `stream` into steps of at least `tokens_per_step` items, as `task` counts them.

    A step ends with the micro-batch that fills it, so it has at most one micro-batch more than it needs, and goes over
    the end of a pass. Raises ConfigError for fewer than 1 token.
    """

    def __init__(self, stream: BatchStream, task: Task, tokens_per_step: int) -> None:
        if isinstance(tokens_per_step, bool) or not isinstance(tokens_per_step, int) or tokens_per_step < 1:
            raise ConfigError("tokens_per_step is wrong", found=repr(tokens_per_step), wanted="at least 1 token")
        self.stream = stream
        self.task = task
        self.tokens_per_step = tokens_per_step

    def iterate(self, start: int = 0) -> Generator[StepBatches]:
        """Give out steps without end, the first from micro-batch `start` of the stream on; what a stream of finite
        length leaves unfilled at its end stays out.

        Raises DataError after a thousand micro-batches in a row without an item.
        """
        position, batches, items, empty = start, [], 0, 0
        with contextlib.ExitStack() as stack:
            source = self.stream.iterate(start)
            stack.callback(getattr(source, "close", lambda: None))
            for batch in source:
                count = self.task.count(batch)
                position += 1
                empty = 0 if count else empty + 1
                if empty >= _MOST_EMPTY:
                    raise self._nothing(f"none in {empty} micro-batches in a row, up to {position}")
                batches.append(batch)
                items += count
                if items >= self.tokens_per_step:
                    yield StepBatches(batches, items, position)
                    batches, items = [], 0

    def steps_in(self, batches: int, probe: int = 64) -> int:
        """Return about how many steps `batches` micro-batches make, at least 1.

        Counted through with the items of the first `probe` micro-batches, over and over: exact where all are alike, and
        where `probe` covers a pass. Raises DataError where the probe holds no item.
        """
        with contextlib.ExitStack() as stack:
            source = self.stream.iterate(0)
            stack.callback(getattr(source, "close", lambda: None))
            probed = itertools.islice(source, min(probe, len(self.stream)))
            counts = [self.task.count(batch) for batch in probed]
        if not sum(counts):
            raise self._nothing(f"none in the first {len(counts)} micro-batches")
        counted = min(batches, _COUNTED)
        steps, items = 0, 0
        for count in itertools.islice(itertools.cycle(counts), counted):
            items += count
            if items >= self.tokens_per_step:
                steps, items = steps + 1, 0
        return max(1, steps * batches // counted) if batches > 0 else 1

    def _nothing(self, found: str) -> DataError:
        return DataError(
            "the batches have no target to learn from",
            found=found,
            wanted="labels other than -100",
            fix="check the data",
        )
