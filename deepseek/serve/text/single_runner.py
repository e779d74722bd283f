"""Runs models that keep their past in their own way (states, a memory): one past a sequence, one sequence at a time.

It keeps the promises of `runner`, but for speed: sequences of a step are computed one after the other, and pages stand
for nothing. What another text has computed can't be shared; the tokens that a plan leaves out for it are read again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deepseek.serve.text.plan import Sampled, SequenceRun, StepPlan
from deepseek.serve.text.sampler import Sampler

if TYPE_CHECKING:
    from deepseek.serve.text.limits import EngineLimits

Reader = Callable[[Tensor], Tensor]
"""Takes the next ids (1, time) of a text and returns the logits (1, vocab_size) behind the last."""


class _Past(NamedTuple):
    """How much of a text was read, and what reads on."""

    length: int
    read: Reader


class SingleRunner:
    """Runs one model with a past of its own kind. One thread calls it."""

    shares_pages = False

    def __init__(
        self, model: Any, limits: EngineLimits, vocab_size: int, max_length: int, device: torch.device
    ) -> None:
        """`vocab_size`: tokens from here on are never chosen. `max_length`: of the longest text."""
        self.block_size = limits.block_size
        self.num_blocks = limits.max_active * -(-max_length // limits.block_size)
        self._model, self._max_length, self._device = model, max_length, device
        self._sampler = Sampler(vocab_size)
        self._pasts: dict[int, _Past] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Return one result for each run with `sampling`, in order."""
        wanted, rows = [], []
        with torch.inference_mode():
            for run in plan.runs:
                logits = self._read(run)
                if run.sampling is not None and logits is not None:
                    wanted.append(run)
                    rows.append(logits)
            return self._sampler.sample(torch.cat(rows), wanted) if wanted else []

    def release(self, sequence: int) -> None:
        """Forget a sequence and its past."""
        self._pasts.pop(sequence, None)
        self._sampler.release(sequence)

    def _read(self, run: SequenceRun) -> Tensor | None:
        """Read a text to the end of the run's tokens; begin anew where it was begun anew, or read behind that.

        Where the length of what is read at once changes the answer, a piece of a prompt is read by whole segments.
        """
        past, end = self._pasts.get(run.sequence), run.start + len(run.tokens)
        if past is None or past.length > run.start:
            past = _Past(0, reader_of(self._model, self._max_length))
        if run.sampling is None:
            end -= (end - past.length) % segment_of(self._model)
            if end == past.length:
                return None
        ids = torch.tensor([list(run.history[past.length : end])], dtype=torch.int64, device=self._device)
        logits = past.read(ids)
        self._pasts[run.sequence] = _Past(end, past.read)
        return logits


def can_read(model: Any) -> bool:
    """Return whether a model can go on with a text: it makes a cache, or takes a memory."""
    return hasattr(model, "new_cache") or "memory" in inspect.signature(model.forward).parameters


def segment_of(model: Any) -> int:
    """Return how many tokens of a prompt a model reads at once; 1 where that makes no difference."""
    return 1 if hasattr(model, "new_cache") else max(1, int(model.config.memory_length))


def reader_of(model: Any, max_length: int) -> Reader:
    """Return what reads one text of up to `max_length` tokens, piece by piece."""
    if hasattr(model, "new_cache"):
        cache = model.new_cache(1, max_length)

        def read(ids: Tensor) -> Tensor:
            logits: Tensor = model(ids, cache=cache)[:, -1]
            return logits

        return read
    memory: Tensor | None = None

    def read_segments(ids: Tensor) -> Tensor:
        nonlocal memory
        for segment in torch.split(ids, segment_of(model), dim=1):
            logits, memory = model(segment, memory)
        last: Tensor = logits[:, -1]
        return last

    return read_segments
