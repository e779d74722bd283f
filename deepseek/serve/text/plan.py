"""What the scheduler asks of a runner in one step, and what it gets back: plain data, no torch.

A step computes tokens of several sequences at once: whole prompts, pieces of prompts, single tokens of running answers.
The scheduler owns the pages (who holds which, who shares); the runner owns what stands in them, the sampling and what
it remembers of a sequence. Not here: who is next (see `scheduler`) and how it is computed (see `runner`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from deepseek.models.generation import SamplingConfig


class Constraint(Protocol):
    """What an answer must look like: made by `TextModel.constraint`, understood by the runner, opaque to all others."""


class Sampling(NamedTuple):
    """How the next token of a sequence is chosen and what is told of it.

    `logprobs` is the number of likeliest tokens to name beside the chosen one; None: tell nothing.
    """

    config: SamplingConfig
    logprobs: int | None = None
    constraint: Constraint | None = None


class SequenceRun(NamedTuple):
    """What to compute of one sequence in this step.

    `sequence` is unique in the engine's life. `tokens` are computed now, the first stands at position `start`: what is
    before it stands in the pages already. `blocks` are the sequence's pages in order, enough for start + len(tokens)
    positions. `history` is prompt and answer so far, `tokens` included; it is not copied and may grow after the step.
    With `sampling` one token is wanted after the last of `tokens`; None: a piece of a prompt that goes on.
    """

    sequence: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    history: Sequence[int]
    sampling: Sampling | None


class StepPlan(NamedTuple):
    """The sequences of one step; each is there once."""

    runs: tuple[SequenceRun, ...]


class TokenLogprob(NamedTuple):
    """The natural logarithm of a chosen token's probability, and those of the likeliest tokens, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampled(NamedTuple):
    """The next token of one sequence, or the error that ends this sequence alone.

    `finished`: the constraint or the model is at its end, after `token` if there is one.
    """

    sequence: int
    token: int | None
    logprob: TokenLogprob | None
    error: Exception | None
    finished: bool = False


class Runner(Protocol):
    """Computes steps. It is called by one thread.

    One whose pages stand for nothing, because it keeps the past of each sequence in its own way, has the attribute
    `shares_pages = False`: then every run begins where the sequence's run before it ended, or at 0.
    """

    @property
    def block_size(self) -> int:
        """Tokens a page."""
        ...

    @property
    def num_blocks(self) -> int:
        """Pages there are; they are numbered from 0."""
        ...

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Return one result for each run with `sampling`, in order. An error raised here fails all in the step."""
        ...

    def release(self, sequence: int) -> None:
        """Forget what is remembered of a sequence (its generator, its grammar). Unknown ones are no error.

        Its pages belong to the scheduler.
        """
        ...
