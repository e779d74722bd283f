"""Runs models that keep their past in their own way (states, a memory), and pages stand for nothing.

It keeps the promises of `runner`: what is asked of several texts in one step is handed on together. How texts are read
side by side is the affair of their `Pasts`: `stacked_states` for LSTM, `memories` for Transformer-XL; any other model
reads them one after the other. What another text has computed can't be shared; the tokens that a plan leaves out for it
are read again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deepseek.models.lstm import LSTM
from deepseek.models.transformer_xl import TransformerXL
from deepseek.serve.text.memories import Memories
from deepseek.serve.text.plan import Sampled, SequenceRun, StepPlan
from deepseek.serve.text.sampler import Sampler
from deepseek.serve.text.stacked_states import StackedStates

if TYPE_CHECKING:
    from deepseek.serve.text.limits import EngineLimits

Reader = Callable[[Tensor], Tensor]
"""Takes the next ids (1, time) of a text and returns the logits (1, vocab_size) behind the last."""


class Pasts(Protocol):
    """The pasts of all running texts, by number. A text that is not known begins."""

    @property
    def segment(self) -> int:
        """How many tokens of a prompt are read at once; 1 where that makes no difference."""
        ...

    def read(self, texts: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the next `ids` of each of `texts`, at least one; return the logits (texts, vocab_size) behind them."""
        ...

    def forget(self, text: int) -> None:
        """Forget a text, if it is known."""
        ...


class _Piece(NamedTuple):
    """The next tokens of a text, and the run that they are for."""

    run: SequenceRun
    ids: Sequence[int]


class PastRunner:
    """Runs one model with a past of its own kind. One thread calls it."""

    shares_pages = False

    def __init__(
        self, model: Any, limits: EngineLimits, vocab_size: int, max_length: int, device: torch.device
    ) -> None:
        """`vocab_size`: tokens from here on are never chosen. `max_length`: of the longest text."""
        self.block_size = limits.block_size
        self.num_blocks = limits.max_active * -(-max_length // limits.block_size)
        self._pasts = pasts_of(model, max_length, device)
        self._sampler = Sampler(vocab_size)
        self._lengths: dict[int, int] = {}  # tokens read of each text

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Return one result for each run with `sampling`, in order."""
        pieces = [piece for piece in map(self._piece, plan.runs) if piece is not None]
        if not pieces:
            return []
        with torch.inference_mode():
            logits = self._pasts.read([piece.run.sequence for piece in pieces], [piece.ids for piece in pieces])
            for run, ids in pieces:
                self._lengths[run.sequence] = self._lengths.get(run.sequence, 0) + len(ids)
            rows = [row for row, piece in enumerate(pieces) if piece.run.sampling is not None]
            if not rows:
                return []
            asked = logits if len(rows) == len(pieces) else logits[rows]
            return self._sampler.sample(asked, [pieces[row].run for row in rows])

    def release(self, sequence: int) -> None:
        """Forget a sequence and its past."""
        self._forget(sequence)
        self._sampler.release(sequence)

    def _forget(self, sequence: int) -> None:
        self._lengths.pop(sequence, None)
        self._pasts.forget(sequence)

    def _piece(self, run: SequenceRun) -> _Piece | None:
        """Return what to read of a text: anew where it was begun anew, else behind what was read.

        Where the length of what is read at once changes the answer, a piece of a prompt is read by whole segments.
        """
        done, end = self._lengths.get(run.sequence, 0), run.start + len(run.tokens)
        if done > run.start:
            self._forget(run.sequence)
            done = 0
        if run.sampling is None:
            end -= (end - done) % self._pasts.segment
        return _Piece(run, run.history[done:end]) if end > done else None


def can_read(model: Any) -> bool:
    """Return whether a model can go on with a text: it makes a cache, or takes a memory."""
    return hasattr(model, "new_cache") or "memory" in inspect.signature(model.forward).parameters


def pasts_of(model: Any, max_length: int, device: torch.device) -> Pasts:
    """Return what reads texts of up to `max_length` tokens with a model."""
    if type(model) is LSTM:
        return StackedStates(model, device)
    if type(model) is TransformerXL:
        return Memories(model, max_length, device)
    return _OneByOne(model, max_length, device)


class _OneByOne:
    """Texts read one after the other by a model with `new_cache`, or with a memory of `config.memory_length` tokens."""

    def __init__(self, model: Any, max_length: int, device: torch.device) -> None:
        self._model, self._max_length, self._device = model, max_length, device
        self._readers: dict[int, Reader] = {}

    @property
    def segment(self) -> int:
        """How many tokens of a prompt are read at once."""
        return 1 if hasattr(self._model, "new_cache") else max(1, int(self._model.config.memory_length))

    def read(self, texts: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """See `Pasts`."""
        rows = []
        for text, tokens in zip(texts, ids, strict=True):
            if text not in self._readers:
                self._readers[text] = self._reader()
            rows.append(self._readers[text](torch.tensor([list(tokens)], dtype=torch.int64, device=self._device)))
        return torch.cat(rows)

    def forget(self, text: int) -> None:
        """See `Pasts`."""
        self._readers.pop(text, None)

    def _reader(self) -> Reader:
        """Return what reads one text, piece by piece."""
        model = self._model
        if hasattr(model, "new_cache"):
            cache = model.new_cache(1, self._max_length)

            def read(ids: Tensor) -> Tensor:
                logits: Tensor = model(ids, cache=cache)[:, -1]
                return logits

            return read
        memory: Tensor | None = None

        def read_segments(ids: Tensor) -> Tensor:
            nonlocal memory
            for segment in torch.split(ids, self.segment, dim=1):
                logits, memory = model(segment, memory)
            last: Tensor = logits[:, -1]
            return last

        return read_segments
