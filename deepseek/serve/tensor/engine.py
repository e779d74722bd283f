"""The engine for models of fixed shape: rows of several requests in one run, on one or several worker threads.

A run takes whatever waits (up to the size from which more rows are no faster), so batches grow with the load and a
lone request never waits. Runs so short that handing them to a thread would cost more are done where they arrive.
An error of a run that several requests share is nobody's: they run again one by one.
It knows nothing of HTTP. Not here: how rows are put together (`batch`), whom to refuse (`admission`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.monitoring.tracing import record
from deepseek.serve.tensor.admission import Admission, Costs
from deepseek.serve.tensor.batch import Arrays, Joiner
from deepseek.serve.tensor.datatypes import ModelSignature
from deepseek.serve.tensor.limits import INLINE_SECONDS, TensorLimits
from deepseek.serve.tensor.requests import Answer, Cancelled, Item, Waiter, deliver, stopping, too_late, too_many

_LOG = logging.getLogger("deepseek.serve")

Run = Callable[[Arrays], Mapping[str, np.ndarray]]


_SHUT_SECONDS, _SHUT_SHARE = 0.001, 0.1
"""How long `gate` stays shut once it was: so long, or this share of a run, whichever is less."""


class TensorSource(Protocol):
    """What the engine needs of a model. It may also have `runners(count)`, `instances`, `pad_axes`, `seconds`."""

    @property
    def signature(self) -> ModelSignature:
        """What goes in and out."""
        ...

    def run(self, inputs: Arrays) -> Mapping[str, np.ndarray]:
        """Run once."""
        ...

    def verify(self) -> None:
        """Answer the golden samples. Raises BundleError when an answer differs from the recorded one."""
        ...


class TensorStats(NamedTuple):
    """Counts since the start, but for `waiting` and `active` (requests now); seconds are sums."""

    waiting: int
    active: int
    finished: int
    cancelled: int
    failed: int
    refused: int
    rows: int
    runs: int
    queue_seconds: float
    run_seconds: float


class TensorEngine:
    """Runs many requests on one model. `step()` does one run by hand; `start()` has worker threads do them."""

    def __init__(
        self,
        model: TensorSource,
        limits: TensorLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or TensorLimits()
        self.signature = model.signature
        self._clock = clock
        count = int(getattr(model, "instances", self.limits.instances or 1))
        make = getattr(model, "runners", None)
        self._runs: Sequence[Run] = make(count) if make is not None else [model.run] * count
        self._locks = [threading.Lock() for _ in self._runs]
        self._joiner = Joiner(self.signature, getattr(model, "pad_axes", ()))
        self._explain: Callable[[Exception], Exception] = getattr(model, "explain", _as_is)
        measured: Mapping[int, float] = getattr(model, "seconds", {})
        self._costs = Costs(measured)
        most = self.limits.max_batch if self.signature.batch_axis else 1
        self.batch_rows = self._costs.best_rows(most)
        """The most rows of one run."""
        lone = measured.get(1, math.inf)
        self._inline_rows = int(INLINE_SECONDS / lone) if lone > 0 else 0
        self._admission = Admission(self._costs, len(self._runs), self.batch_rows)
        self._wake = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._running: dict[int, tuple[list[Item], float]] = {}
        self._counts: Counter[str] = Counter()
        self._inline: Counter[str] = Counter()
        self._sums = [0.0, 0.0]
        self._last = (0, 0, -math.inf)  # rows and requests of the last run, and its end
        self._shut_until = -math.inf
        self._turned_away = 0
        self._again = 1
        self._closing = False
        self._threads: list[threading.Thread] = []

    def submit(
        self, inputs: Arrays, done: Callable[[Answer], None], *, deadline: float | None = None
    ) -> Callable[[], None]:
        """Queue a request and return what cancels it; `done` gets outputs or error, on a worker thread.

        `deadline` is a value of the engine's clock (`time.monotonic`). Raises RequestError: 400 for inputs that don't
        fit, 413 for too many rows, 429 when the queue is full or the server overloaded, 503 when it is closing.
        """
        item = self._queue(inputs, done, deadline)
        return lambda: self._cancel(item)

    async def infer(self, inputs: Arrays, *, deadline: float | None = None) -> Mapping[str, np.ndarray]:
        """Return the outputs; raises what `submit` raises, 504 for one that is too late, and what the model raises.

        A cancelled call frees its place in the queue.
        """
        outputs = self.run_now(inputs)
        if outputs is not None:
            return outputs
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mapping[str, np.ndarray]] = loop.create_future()
        item = self._queue(inputs, Waiter(loop, future), deadline)

        def expire() -> None:
            if not future.done():
                future.set_exception(too_late())
                self._cancel(item, too_late())

        timer = loop.call_later(max(0.0, item.deadline - self._clock()), expire)
        try:
            outputs = await future
            record("queue", item.submitted, item.started)
            record("run", item.started, self._clock(), rows=item.rows)
            return outputs
        except asyncio.CancelledError:
            self._cancel(item)
            raise
        finally:
            timer.cancel()

    def run_now(self, inputs: Arrays) -> Mapping[str, np.ndarray] | None:
        """Run a short request here and now; None where it is not short, or others are before it.

        Raises RequestError (400) for inputs that don't fit.
        """
        if not self._inline_rows or self._waiting or self._closing or not self._threads:
            return None
        rows = self.signature.check(inputs)
        lock = self._locks[0]
        if rows > self._inline_rows or not lock.acquire(blocking=False):
            return None
        counts = self._inline
        try:
            counts["rows"] += rows
            counts["runs"] += 1
            outputs = self._runs[0](inputs)
            counts["finished"] += 1
            return outputs
        except Exception as error:
            counts["failed"] += 1
            raise self._explain(error) from error
        finally:
            lock.release()

    def gate(self) -> None:
        """Raise RequestError (429) where a request would be refused now; cheap, to be asked before a body is parsed."""
        if not self._admission.overloaded:
            return
        now = self._clock()
        if now < self._shut_until:  # just looked: as good as certain, and most come here when there are many
            self._turned_away += 1
            raise too_many(self._again)
        again = self.retry_after()
        with self._wake:
            came, self._turned_away = 1 + self._turned_away, 0
            self._counts["refused"] += came - 1
            if came > 1:
                self._admission.offer(now, came - 1)
            busy = [until for _, until in self._running.values()]
            if self._admission.fits(now, 1, sum(one.rows for one in self._waiting), busy):
                return
            self._admission.offer(now, 1)
            self._counts["refused"] += 1
            self._again = again
            self._shut_until = now + min(_SHUT_SECONDS, _SHUT_SHARE * self._costs.seconds(1))
        raise too_many(again)

    def step(self) -> bool:
        """Do one run with what waits; return whether there was any."""
        items = self._take(0, wait=False)
        if items:
            self._run(0, items)
        return bool(items)

    def start(self) -> None:
        """Start the workers."""
        for index in range(len(self._runs)):
            name = f"deepseek-tensor-{index}"
            self._threads.append(threading.Thread(target=self._work, args=(index,), name=name, daemon=True))
            self._threads[-1].start()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let those that came finish for `drain_seconds`, then fail the rest with 503."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        end = time.monotonic() + drain_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self.abort(stopping())
        for thread in self._threads:
            thread.join(10.0)

    def abort(self, error: Exception) -> None:
        """Fail everything that waits or runs with `error`; a run that has begun ends by itself."""
        with self._wake:
            dropped = list(self._waiting)
            self._waiting.clear()
            for items, _ in self._running.values():
                for item in items:
                    item.halt = item.halt or error
        self._finish([(item, error) for item in dropped])

    def stats(self) -> TensorStats:
        """Return the counters."""
        with self._wake:
            counts = self._counts + self._inline
            counts["refused"] += self._turned_away
            active = sum(len(items) for items, _ in self._running.values())
            plain = [counts[name] for name in ("finished", "cancelled", "failed", "refused", "rows", "runs")]
            return TensorStats(len(self._waiting), active, *plain, *self._sums)

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again."""
        with self._wake:
            rows = sum(item.rows for item in self._waiting) + sum(
                item.rows for items, _ in self._running.values() for item in items
            )
        runs = math.ceil(rows / self.batch_rows / len(self._runs))
        return max(1, min(60, math.ceil(runs * self._costs.seconds(self.batch_rows))))

    def _queue(self, inputs: Arrays, sink: Callable[[Answer], None] | Waiter, deadline: float | None) -> Item:
        rows = self.signature.check(inputs)
        if rows > self.limits.max_rows:
            raise RequestError(
                "too many rows in one request", status=413, found=rows, wanted=f"at most {self.limits.max_rows}"
            )
        now = self._clock()
        latest = now + self.limits.request_seconds
        item = Item(inputs, rows, self._joiner.key(inputs), sink, now, latest if deadline is None else deadline)
        with self._wake:
            if self._closing:
                raise stopping()
            shed: list[Item] = []
            if self._admission.offer(now, rows, len(self._waiting) / self.limits.max_queue):
                shed = list(self._waiting)  # whoever waits now would be late, and make all that follow late
                self._waiting.clear()
            busy = [until for _, until in self._running.values()]
            full = len(self._waiting) >= self.limits.max_queue
            fits = not full and self._admission.fits(now, rows, sum(one.rows for one in self._waiting), busy)
            self._counts["refused"] += len(shed) + (not fits)
            if fits:
                self._waiting.append(item)
                self._wake.notify()
        deliver((one, too_many()) for one in shed)
        if not fits:
            raise too_many()
        return item

    def _cancel(self, item: Item, reason: Exception | None = None) -> None:
        with self._wake:
            try:
                self._waiting.remove(item)
            except ValueError:
                item.halt = item.halt or reason or Cancelled()
                return
        self._finish([(item, reason or Cancelled())])

    def _work(self, index: int) -> None:
        while items := self._take(index, wait=True):
            self._run(index, items)

    def _take(self, index: int, *, wait: bool) -> list[Item]:
        """Return the requests of the next run, marked as running; with `wait` empty only when the engine closes."""
        while True:
            with self._wake:
                while wait and not self._waiting and not self._closing:
                    self._wake.wait()
                now = self._clock()
                late = [item for item in self._waiting if item.deadline <= now]
                for item in late:
                    self._waiting.remove(item)
                items = self._next()
                delay = self._delay(items, now) if wait and items else 0.0
                if delay > 0:
                    self._wake.wait(delay)
                    items = self._next()
                for item in items:
                    self._waiting.remove(item)
                if items:
                    until = self._clock() + self._costs.seconds(sum(item.rows for item in items))
                    self._running[index] = items, until
                closing = self._closing and not self._waiting
            self._finish([(item, too_late()) for item in late])
            if items or not wait or closing:
                return items

    def _next(self) -> list[Item]:
        """Return the first that waits and those that can share its run, in order; idle instances get their share."""
        if not self._waiting:
            return []
        idle = max(1, len(self._runs) - len(self._running))
        most = min(self.batch_rows, math.ceil(sum(item.rows for item in self._waiting) / idle))
        first = self._waiting[0]
        items, rows = [first], first.rows
        for item in self._waiting:
            if item is not first and item.key == first.key and rows + item.rows <= most:
                items.append(item)
                rows += item.rows
                if rows == most:
                    break
        return items

    def _delay(self, items: Sequence[Item], now: float) -> float:
        """Return how long to wait for more: only just after a run of several requests, whose clients may come again."""
        rows, count, end = self._last
        have = sum(item.rows for item in items)
        if count < 2 or have >= min(rows, self.batch_rows) or self._closing:
            return 0.0
        return end + self.limits.max_delay_ms / 1000 - now

    def _run(self, index: int, items: list[Item]) -> None:
        """Run and answer. On an error the requests run one by one, so that each gets its own."""
        start = self._clock()
        for item in items:
            item.started = start
        try:
            answers = self._together(index, items)
        finally:
            end = self._clock()
            rows = sum(item.rows for item in items)
            with self._wake:
                self._running.pop(index, None)
                self._last = rows, len(items), end
                self._counts["rows"] += rows
                self._counts["runs"] += 1
                self._sums[0] += sum(start - item.submitted for item in items)
                self._sums[1] += end - start
                if rows <= self.batch_rows:
                    self._costs.observe(rows, end - start)
        self._finish(answers)

    def _together(self, index: int, items: Sequence[Item]) -> list[tuple[Item, Answer]]:
        requests = [item.inputs for item in items]
        try:
            with self._locks[index]:
                outputs = self._pieces(self._runs[index], self._joiner.join(requests), sum(i.rows for i in items))
            return list(zip(items, self._joiner.split(outputs, requests), strict=True))
        except BaseException as error:  # a model may even call exit(); the worker lives on
            if len(items) == 1:
                return [(items[0], self._explain(_as_exception(error)))]
        return [pair for item in items for pair in self._together(index, [item])]

    def _pieces(self, run: Run, inputs: Arrays, rows: int) -> Mapping[str, np.ndarray]:
        """Run at most `batch_rows` rows at once."""
        step = self.batch_rows
        if rows <= step or not self.signature.batch_axis:
            return run(inputs)
        pieces = [
            run({name: value[start : start + step] for name, value in inputs.items()}) for start in range(0, rows, step)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _finish(self, answers: Sequence[tuple[Item, Answer]]) -> None:
        if not answers:
            return
        ended: list[tuple[Item, Answer]] = [
            (item, answer if item.halt is None else item.halt) for item, answer in answers
        ]
        with self._wake:
            for _, answer in ended:
                outcome = "cancelled" if isinstance(answer, Cancelled) else "failed"
                self._counts[outcome if isinstance(answer, Exception) else "finished"] += 1
        deliver(ended)


def _as_is(error: Exception) -> Exception:
    return error


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"the model raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
