"""The serving engine: a bounded queue and one worker thread that lets requests take turns, token by token.

It knows nothing of HTTP, files or logs: jobs come in, events go out through a callback. A job that fails takes only
itself down. Not here: tokenization of prompts, validation, the wire format (see `rest`), and batched forward passes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pydantic import Field

from deepseek.config import Config
from deepseek.errors import RequestError
from deepseek.serve.text.stop import StopMatcher

if TYPE_CHECKING:
    from deepseek.models.generation import SamplingConfig


class TextStream(Protocol):
    """Turns token ids into text, whole characters only."""

    def push(self, token_id: int, /) -> str:
        """Return the characters that became whole with this token, possibly none."""
        ...

    def finish(self) -> str:
        """Return what is left at the end."""
        ...


class TokenSource(Protocol):
    """What the engine needs of a model."""

    def generate(self, prompt_ids: list[int], sampling: SamplingConfig) -> Iterator[int]:
        """Yield new token ids one by one; closing the iterator frees its cache."""
        ...

    def text_stream(self) -> TextStream:
        """Return a fresh decoder for one answer."""
        ...


class EngineLimits(Config):
    """How much one model's engine takes on."""

    max_active: int = Field(8, ge=1, le=256)
    """Answers that are generated side by side; each holds a KV cache."""
    max_queue: int = Field(64, ge=1, le=100_000)
    """Answers that may wait; a request beyond gets 429."""
    request_seconds: float = Field(600.0, gt=0, le=86_400)
    """The longest a request may take, waiting included; then it fails with 504."""


class Job(NamedTuple):
    """One answer to generate. `stop` are strings, `stop_ids` token ids that end it (neither is part of the text).

    Without `stream` the text comes in one piece at the end, which spares the event loop a visit for each token.
    """

    prompt_ids: list[int]
    sampling: SamplingConfig
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    stream: bool = True


class Piece(NamedTuple):
    """Some more text of answer number `choice`; `tokens` were generated for it so far."""

    choice: int
    text: str
    tokens: int


class Done(NamedTuple):
    """Answer number `choice` is complete. Times in seconds since it was submitted; a stop token counts as a token."""

    choice: int
    reason: Literal["stop", "length", "cancelled"]
    tokens: int
    first_token_seconds: float
    seconds: float


class Failed(NamedTuple):
    """Answer number `choice` failed: a RequestError may be told to the client, any other error belongs in the log."""

    choice: int
    error: Exception


Event = Piece | Done | Failed
Sink = Callable[[Event], None]


class Stats(NamedTuple):
    """Counts since the start, but for `waiting` and `active`, which are now."""

    waiting: int
    active: int
    finished: int
    cancelled: int
    failed: int
    refused: int
    prompt_tokens: int
    generated_tokens: int


class _Cancelled(Exception):  # noqa: N818 - a signal between threads, never raised
    """The client no longer wants the answer."""


class _Generation:
    """One answer on its way. Only the worker touches it, except `halt`, which any thread may set."""

    def __init__(self, choice: int, job: Job, sink: Sink, now: float) -> None:
        self.choice = choice
        self.job = job
        self.sink = sink
        self.submitted = now
        self.first_token = 0.0
        self.tokens = 0
        self.halt: Exception | None = None
        self._matcher = StopMatcher(job.stop)
        self._ids: Iterator[int] | None = None
        self._text: TextStream | None = None
        self._kept: list[str] = []

    def advance(self, model: TokenSource) -> tuple[str, Literal["stop", "length"] | None]:
        """Generate one token; return the text to show and, at the end, the reason for it."""
        if self._ids is None or self._text is None:
            self._text = model.text_stream()
            self._ids = model.generate(self.job.prompt_ids, self.job.sampling)
        token = next(self._ids, None)
        if token is None:
            return self._flush(self._text), "stop"
        self.tokens += 1
        if token in self.job.stop_ids:
            return self._flush(self._text), "stop"
        shown = self._matcher.push(self._text.push(token))
        if not self._matcher.stopped and self.tokens >= self.job.sampling.max_new_tokens:
            shown += self._flush(self._text)
            return shown, "stop" if self._matcher.stopped else "length"
        return shown, "stop" if self._matcher.stopped else None

    def shown(self, text: str, last: bool) -> str:
        """Return the text to emit now: at once when streaming, else all of it with the last token."""
        if self.job.stream:
            return text
        self._kept.append(text)
        return "".join(self._kept) if last else ""

    def close(self) -> None:
        """Free the cache."""
        close = getattr(self._ids, "close", None)
        self._ids = None
        if close is not None:
            close()

    def _flush(self, text: TextStream) -> str:
        shown = self._matcher.push(text.finish())
        return shown + self._matcher.finish()


class Ticket:
    """A submitted request, to be cancelled from any thread."""

    def __init__(self, generations: Sequence[_Generation]) -> None:
        self._generations = generations

    def cancel(self) -> None:
        """Stop generating within one step. Without effect on answers that are complete."""
        for generation in self._generations:
            generation.halt = generation.halt or _Cancelled()


class Engine:
    """Generates for many requests with one model.

    `step()` is the whole of the schedule and may be called by hand; `start()` runs it on a worker thread.
    Events reach the sink on that thread; a sink that raises cancels its own answer only.
    """

    def __init__(
        self, model: TokenSource, limits: EngineLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self.limits = limits or EngineLimits()
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: deque[_Generation] = deque()
        self._active: list[_Generation] = []
        self._counts: Counter[str] = Counter()
        self._mean_seconds = 1.0
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, jobs: Sequence[Job], sink: Sink) -> Ticket:
        """Queue `jobs` as answers 0, 1, ... of one request: all or none.

        Raises RequestError with status 429 when the queue is full, 503 when the engine is closing.
        """
        now = self._clock()
        generations = [_Generation(choice, job, sink, now) for choice, job in enumerate(jobs)]
        with self._wake:
            if self._closing:
                raise RequestError("the server is stopping", status=503, fix="try again in a moment")
            room = self.limits.max_queue - len(self._waiting)
            if len(generations) > room:
                self._counts["refused"] += 1
                raise RequestError("the server has too many requests waiting", status=429, fix="try again later")
            self._waiting.extend(generations)
            self._counts["prompt_tokens"] += sum(len(job.prompt_ids) for job in jobs)
            self._wake.notify()
        return Ticket(generations)

    def step(self) -> bool:
        """Admit what fits, then move every active answer on by one token. Return whether there is more to do."""
        self._admit()
        for generation in list(self._active):
            self._advance(generation)
        return bool(self._active or self._waiting)

    def start(self) -> None:
        """Run `step` on a worker thread whenever there is something to do."""
        self._thread = threading.Thread(target=self._run, name="deepseek-engine", daemon=True)
        self._thread.start()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for `drain_seconds`, then fail the rest with 503."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(drain_seconds)
            self.abort(RequestError("the server is stopping", status=503, fix="try again in a moment"))
            self._thread.join(10.0)

    def abort(self, error: Exception) -> None:
        """Fail everything that waits or runs with `error`."""
        with self._wake:
            for generation in [*self._waiting, *self._active]:
                generation.halt = generation.halt or error

    def stats(self) -> Stats:
        """Return the counters."""
        with self._wake:
            counts = [self._counts[name] for name in Stats._fields[2:]]
            return Stats(len(self._waiting), len(self._active), *counts)

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again, by what recent answers took."""
        stats = self.stats()
        rounds = (stats.waiting + stats.active) / self.limits.max_active
        return max(1, min(60, math.ceil(self._mean_seconds * rounds)))

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._active or self._closing):
                    self._wake.wait()
                if self._closing and not (self._waiting or self._active):
                    return
            try:
                self.step()
            except Exception as error:  # an error of ours: the worker lives on all the same
                for generation in list(self._active):
                    self._end(generation, Failed(generation.choice, error))

    def _admit(self) -> None:
        with self._wake:
            dropped = [
                (generation, verdict)
                for generation in self._waiting
                if (verdict := self._verdict(generation)) is not None
            ]
            for generation, _ in dropped:
                self._waiting.remove(generation)
            while self._waiting and len(self._active) < self.limits.max_active:
                self._active.append(self._waiting.popleft())
        for generation, verdict in dropped:
            self._finish(generation, verdict)

    def _verdict(self, generation: _Generation) -> Done | Failed | None:
        """Return how an answer ends that was cancelled, aborted or is too late; None while it may go on."""
        if isinstance(generation.halt, _Cancelled):
            return self._done(generation, "cancelled")
        if generation.halt is not None:
            return Failed(generation.choice, generation.halt)
        if self._clock() - generation.submitted > self.limits.request_seconds:
            problem = f"the request took longer than {self.limits.request_seconds:g} s"
            return Failed(generation.choice, RequestError(problem, status=504, fix="ask for fewer tokens or try later"))
        return None

    def _advance(self, generation: _Generation) -> None:
        verdict = self._verdict(generation)
        if verdict is not None:
            self._end(generation, verdict)
            return
        before = generation.tokens
        try:
            text, reason = generation.advance(self._model)
        except BaseException as error:  # a model may even call exit(); that is this request's affair only
            self._end(generation, Failed(generation.choice, _as_exception(error)))
            return
        if before == 0 and generation.tokens:
            generation.first_token = self._clock()
        text = generation.shown(text, reason is not None)
        if text:
            self._emit(generation, Piece(generation.choice, text, generation.tokens))
        if reason is not None:
            self._end(generation, self._done(generation, reason))

    def _done(self, generation: _Generation, reason: Literal["stop", "length", "cancelled"]) -> Done:
        seconds = self._clock() - generation.submitted
        first = generation.first_token - generation.submitted if generation.tokens else seconds
        return Done(generation.choice, reason, generation.tokens, first, seconds)

    def _end(self, generation: _Generation, event: Done | Failed) -> None:
        """Free the cache, leave the active ones, and tell how it ended."""
        try:
            generation.close()
        except Exception as error:
            event = Failed(generation.choice, error)
        with self._wake:
            self._active.remove(generation)
        self._finish(generation, event)

    def _finish(self, generation: _Generation, event: Done | Failed) -> None:
        outcome = "failed" if isinstance(event, Failed) else "cancelled" if event.reason == "cancelled" else "finished"
        with self._wake:
            self._counts[outcome] += 1
            self._counts["generated_tokens"] += generation.tokens
            if isinstance(event, Done) and outcome == "finished":
                self._mean_seconds += 0.2 * (event.seconds - self._mean_seconds)
        self._emit(generation, event)

    def _emit(self, generation: _Generation, event: Event) -> None:
        try:
            generation.sink(event)
        except Exception:  # nobody listens any more (a closed event loop): stop working for them
            generation.halt = generation.halt or _Cancelled()


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"the model raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
