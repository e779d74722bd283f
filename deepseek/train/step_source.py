"""Which micro-batches make a step: a fixed number of them, or as many as hold a number of tokens.

Not here: counting in tokens itself (`token_batches.py`).
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Protocol

from deepseek.tasks.task import Task
from deepseek.train.batches import BatchStream
from deepseek.train.config import TrainConfig
from deepseek.train.token_batches import StepBatches, TokenAccumulation


class StepSource(Protocol):
    """Micro-batches in the groups that make steps."""

    def iterate(self, start: int = 0) -> Generator[StepBatches]:
        """Give out steps, the first from micro-batch `start` of the data on."""
        ...

    def steps_in(self, batches: int) -> int:
        """Return how many steps so many micro-batches make, at least 1."""
        ...


class FixedAccumulation:
    """Steps of `number` micro-batches each."""

    def __init__(self, stream: BatchStream, task: Task, number: int) -> None:
        self.stream, self.task, self.number = stream, task, number

    def iterate(self, start: int = 0) -> Generator[StepBatches]:
        """Give out steps, the first from micro-batch `start` of the data on."""
        source, position = self.stream.iterate(start), start
        try:
            while True:
                batches = list(islice(source, self.number))
                position += len(batches)
                yield StepBatches(batches, sum(self.task.count(batch) for batch in batches), position)
        finally:
            getattr(source, "close", lambda: None)()

    def steps_in(self, batches: int) -> int:
        """Return how many steps so many micro-batches make, at least 1."""
        return max(1, batches // self.number)


def step_source(stream: BatchStream, task: Task, config: TrainConfig) -> StepSource:
    """Return the source that the settings ask for. Raises ConfigError for less than one token."""
    if config.tokens_per_step is None:
        return FixedAccumulation(stream, task, config.gradient_accumulation_steps)
    return TokenAccumulation(stream, task, config.tokens_per_step)
