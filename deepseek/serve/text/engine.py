"""The serving engine: a bounded queue and one worker thread that moves all running answers on, a token a step.

It knows nothing of HTTP, files or logs: jobs come in, events go out through a callback. What a step computes is the
scheduler's choice, how is the runner's. A job that fails takes only itself down; a step that fails, those in it.
Not here: tokenization of prompts, validation, the wire format (see `rest`).
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import Protocol

from deepseek.errors import RequestError
from deepseek.serve.text.answer import Answer, EndReason
from deepseek.serve.text.answer_text import TextStream
from deepseek.serve.text.events import Done, Event, Failed, Job, Piece, Sink, Stats
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.plan import Runner, Sampled, Sampling
from deepseek.serve.text.scheduler import Scheduler, SchedulerLimits
from deepseek.serve.text.sequence import TextSequence, positions

__all__ = [
    "Done",
    "Engine",
    "EngineLimits",
    "Event",
    "Failed",
    "Job",
    "Piece",
    "Sink",
    "Stats",
    "TextStream",
    "Ticket",
    "TokenSource",
]


class TokenSource(Protocol):
    """What the engine needs of a model."""

    def runner(self, limits: EngineLimits) -> Runner:
        """Return what computes this model's steps; it holds the KV cache."""
        ...

    def text_stream(self) -> TextStream:
        """Return a fresh decoder for one answer."""
        ...


class _Cancelled(Exception):  # noqa: N818 - a signal between threads, never raised
    """The client no longer wants the answer."""


class Ticket:
    """A submitted request, to be cancelled from any thread."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """Stop generating within one step. Without effect on answers that are complete."""
        self._cancel()


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
        self._runner = model.runner(self.limits)
        self._shares = getattr(self._runner, "shares_pages", True)
        self._scheduler = Scheduler(
            SchedulerLimits(
                self._runner.num_blocks,
                self._runner.block_size,
                self.limits.max_active,
                self.limits.max_batch_tokens,
            )
        )
        self._wake = threading.Condition()
        self._live: OrderedDict[int, Answer] = OrderedDict()  # by number, so in the order of their deadlines
        self._arrived: list[Answer] = []
        self._halted: list[tuple[Answer, Exception]] = []
        self._numbers = 0
        self._counts: Counter[str] = Counter()
        self._batch_size = 0
        self._mean_seconds = 1.0
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, jobs: Sequence[Job], sink: Sink) -> Ticket:
        """Queue `jobs` as answers 0, 1, ... of one request: all or none.

        Raises RequestError with status 429 when the queue is full, 503 when the engine is closing, 400 for a job
        that would not fit the memory for keys and values even alone.
        """
        for job in jobs:
            self._check(job)
        now = self._clock()
        with self._wake:
            if self._closing:
                raise RequestError("the server is stopping", status=503, fix="try again in a moment")
            room = self.limits.max_queue - len(self._arrived) - self._scheduler.waiting
            if len(jobs) > room:
                self._counts["refused"] += 1
                raise RequestError("the server has too many requests waiting", status=429, fix="try again later")
            request = self._numbers
            answers = [
                Answer(choice, job, self._sequence(job, request, len(jobs)), sink, now)
                for choice, job in enumerate(jobs)
            ]
            self._live.update((answer.sequence.number, answer) for answer in answers)
            self._arrived.extend(answers)
            self._counts["prompt_tokens"] += sum(len(job.prompt_ids) for job in jobs)
            self._wake.notify()
        return Ticket(lambda: self._halt(answers, _Cancelled()))

    def step(self) -> bool:
        """End what is cancelled or too late, then compute what the scheduler plans. Return whether there is more."""
        self._take_in()
        plan = self._scheduler.plan()
        self._batch_size = len(plan.runs)
        if plan.runs:
            try:
                results = self._runner.run(plan)
                ready = self._scheduler.commit()
                answers = self._matched(ready, results)
            except BaseException as error:  # a model may even call exit(); that is this step's affair only
                self._fail_step(_as_exception(error))
            else:
                now = self._clock()
                for answer, result in zip(answers, results, strict=True):
                    self._advance(answer, result, now)
        return bool(self._live)

    def start(self) -> None:
        """Run `step` on a worker thread whenever there is something to do."""
        self._thread = threading.Thread(target=self._work, name="deepseek-engine", daemon=True)
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
            self._halt(list(self._live.values()), error)

    def stats(self) -> Stats:
        """Return the counters."""
        scheduler, counts = self._scheduler, self._counts
        with self._wake:
            return Stats(
                waiting=len(self._arrived) + scheduler.waiting,
                active=scheduler.active,
                finished=counts["finished"],
                cancelled=counts["cancelled"],
                failed=counts["failed"],
                refused=counts["refused"],
                prompt_tokens=counts["prompt_tokens"],
                generated_tokens=counts["generated_tokens"],
                cached_tokens=scheduler.cached_tokens,
                preemptions=scheduler.preemptions,
                blocks_used=scheduler.pool.used,
                blocks_total=scheduler.pool.total,
                batch_size=self._batch_size if self._live else 0,
            )

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again, by what recent answers took."""
        stats = self.stats()
        rounds = (stats.waiting + stats.active) / self.limits.max_active
        return max(1, min(60, math.ceil(self._mean_seconds * rounds)))

    def _check(self, job: Job) -> None:
        if not job.prompt_ids:
            raise RequestError("the prompt has no tokens", field="prompt", wanted="at least one token")
        size, pages = self._runner.block_size, self._scheduler.pool.total
        tokens = positions(len(job.prompt_ids), job.sampling.max_new_tokens)
        if -(-tokens // size) > pages:
            raise RequestError(
                "the request does not fit the server's memory for keys and values",
                field="max_tokens" if len(job.prompt_ids) < pages * size else "prompt",
                found=f"{len(job.prompt_ids)} tokens of prompt and {job.sampling.max_new_tokens} of answer",
                wanted=f"at most {pages * size + 1} together",
                fix="shorten the prompt or lower max_tokens",
            )

    def _sequence(self, job: Job, request: int, answers: int) -> TextSequence:
        """Return a sequence that shares pages: with all of its tenant, or without a prefix cache within its request."""
        salt: Hashable = job.salt if self.limits.prefix_cache else (request, job.salt)
        shares = self._shares and (self.limits.prefix_cache or answers > 1)
        sampling = Sampling(job.sampling, job.logprobs, job.constraint)
        self._numbers += 1
        return TextSequence(self._numbers, job.prompt_ids, sampling, self._scheduler.root(salt) if shares else None)

    def _halt(self, answers: Sequence[Answer], reason: Exception) -> None:
        with self._wake:
            for answer in answers:
                if not answer.halted and answer.sequence.number in self._live:
                    answer.halted = True
                    self._halted.append((answer, reason))

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._live or self._closing):
                    self._wake.wait()
                if self._closing and not self._live:
                    return
            try:
                self.step()
            except Exception as error:  # an error of ours: the worker lives on all the same
                self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> None:
        """Fail all there is and trust nothing of the old schedule."""
        with self._wake:
            self._scheduler = Scheduler(self._scheduler.limits)
            self._arrived.clear()
            self._halted.clear()
            live = list(self._live.values())
        for answer in live:
            self._finish(answer, error)

    def _take_in(self) -> None:
        """Let new answers wait for their turn, and end those that nobody wants any more or that took too long."""
        too_early = self._clock() - self.limits.request_seconds
        with self._wake:
            for answer in self._arrived:
                self._scheduler.add(answer.sequence)
            self._arrived.clear()
            halted, self._halted = self._halted, []
            late = list(takewhile(lambda answer: answer.submitted < too_early, self._live.values()))
        problem = f"the request took longer than {self.limits.request_seconds:g} s"
        for answer in late:
            if not answer.halted:
                error = RequestError(problem, status=504, fix="ask for fewer tokens or try later")
                self._end(answer, error)
        for answer, reason in halted:
            if answer.sequence.number in self._live:
                self._end(answer, reason)

    def _matched(self, ready: Sequence[TextSequence], results: Sequence[Sampled]) -> list[Answer]:
        """Return the answers that the results are for. Raises RuntimeError where they are not those planned."""
        wanted = [sequence.number for sequence in ready]
        found = [result.sequence for result in results]
        if found != wanted:
            raise RuntimeError(f"the runner answered for sequences {found} where {wanted} were planned")
        return [self._live[number] for number in wanted]

    def _fail_step(self, error: Exception) -> None:
        for sequence in self._scheduler.abandon():
            self._finish(self._live[sequence.number], error)

    def _advance(self, answer: Answer, result: Sampled, now: float) -> None:
        """Take an answer's next token: show what may be shown, end it where it ends."""
        if result.error is not None:
            self._end(answer, result.error, damaged=True)
            return
        try:
            reason, shown = answer.take(result, now, self._model.text_stream)
        except Exception as error:  # a decoder that fails takes its own answer down
            self._end(answer, error)
            return
        if shown.text or shown.logprobs:
            self._emit(answer, Piece(answer.choice, shown.text, answer.tokens, shown.logprobs))
        if reason is not None:
            self._end(answer, reason)

    def _end(self, answer: Answer, how: EndReason | Exception, *, damaged: bool = False) -> None:
        self._scheduler.remove(answer.sequence, damaged=damaged)
        self._finish(answer, how)

    def _finish(self, answer: Answer, how: EndReason | Exception) -> None:
        """Have the runner forget an answer that has no pages any more, and tell how it ended."""
        try:
            self._runner.release(answer.sequence.number)
        except Exception as error:
            how = error
        now = self._clock()
        event: Done | Failed
        if isinstance(how, _Cancelled):
            outcome, event = "cancelled", answer.done("cancelled", now)
        elif isinstance(how, Exception):
            outcome, event = "failed", Failed(answer.choice, how)
        else:
            outcome, event = "finished", answer.done(how, now)
        with self._wake:
            del self._live[answer.sequence.number]
            self._counts[outcome] += 1
            self._counts["generated_tokens"] += answer.tokens
            if outcome == "finished":
                self._mean_seconds += 0.2 * (now - answer.submitted - self._mean_seconds)
        self._emit(answer, event)

    def _emit(self, answer: Answer, event: Event) -> None:
        try:
            answer.sink(event)
        except Exception:  # nobody listens any more (a closed event loop): stop working for them
            self._halt([answer], _Cancelled())


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"the model raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
