"""What goes into the engine and what comes out of it: jobs, events, counters.

Not here: how a job is made of a request (see `prepare`), and what a client sees of an event (see `rest`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from deepseek.serve.text.plan import Constraint, TokenLogprob

if TYPE_CHECKING:
    from deepseek.models.generation import SamplingConfig


class Job(NamedTuple):
    """One answer to generate. `stop` are strings, `stop_ids` token ids that end it (neither is part of the text).

    Without `stream` the text comes in one piece at the end, which spares the event loop a visit for each token.
    With `logprobs` every shown token is told with that many likeliest ones beside it. Jobs share pages of texts that
    begin alike only where their `salt` is the same: give each tenant its own to keep them apart.
    """

    prompt_ids: list[int]
    sampling: SamplingConfig
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    stream: bool = True
    logprobs: int | None = None
    constraint: Constraint | None = None
    salt: str | None = None


class Piece(NamedTuple):
    """Some more text of answer number `choice`; `tokens` were generated for it so far.

    `logprobs` are those of the tokens whose text is shown with this piece, where the job asked for them.
    """

    choice: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Done(NamedTuple):
    """Answer number `choice` is complete. Times in seconds since it was submitted; a stop token counts as a token.

    `cached_tokens` of the prompt were not computed, because another text began with them.
    """

    choice: int
    reason: Literal["stop", "length", "cancelled"]
    tokens: int
    first_token_seconds: float
    seconds: float
    cached_tokens: int = 0


class Failed(NamedTuple):
    """Answer number `choice` failed: a RequestError may be told to the client, any other error belongs in the log."""

    choice: int
    error: Exception


Event = Piece | Done | Failed
Sink = Callable[[Event], None]


class Stats(NamedTuple):
    """Counts since the start, but for `waiting`, `active` and the three last, which are now.

    `active` are begun answers, also those that had to give up their pages for a while (`preemptions` counts how often).
    `blocks_used` are pages of running answers out of `blocks_total`; pages only kept for reuse are free at any time.
    `batch_size` is the number of answers in the last step.
    """

    waiting: int
    active: int
    finished: int
    cancelled: int
    failed: int
    refused: int
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    preemptions: int
    blocks_used: int
    blocks_total: int
    batch_size: int
