"""The engine for models of fixed shape: rows of several requests in one run, on one or several worker threads.

A run takes whatever waits (up to the size from which more rows are no faster), so batches grow with the load and a
lone request never waits. Runs so short that handing them to a thread would cost more are done where they arrive.
An error of a run that several requests share is nobody's: they run again one by one.
It knows nothing of HTTP. Not here: what waits (`waiting`), how rows are put together (`batch`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from deepseek.serve.monitoring.tracing import record
from deepseek.serve.tensor.admission import Costs
from deepseek.serve.tensor.batch import Arrays, Joiner
from deepseek.serve.tensor.datatypes import ModelSignature
from deepseek.serve.tensor.limits import INLINE_SECONDS, TensorLimits
from deepseek.serve.tensor.requests import Answer, Item, Waiter, stopping, too_late
from deepseek.serve.tensor.waiting import TensorQueue

_LOG = logging.getLogger("deepseek.serve")

Run = Callable[[Arrays], Mapping[str, np.ndarray]]


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


class TensorEngine(TensorQueue):
    """Runs many requests on one model. `step()` does one run by hand; `start()` has worker threads do them."""

    def __init__(
        self,
        model: TensorSource,
        limits: TensorLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = limits or TensorLimits()
        count = int(getattr(model, "instances", limits.instances or 1))
        make = getattr(model, "runners", None)
        self._runs: Sequence[Run] = make(count) if make is not None else [model.run] * count
        self._locks = [threading.Lock() for _ in self._runs]
        self._explain: Callable[[Exception], Exception] = getattr(model, "explain", _as_is)
        measured: Mapping[int, float] = getattr(model, "seconds", {})
        joiner = Joiner(model.signature, getattr(model, "pad_axes", ()))
        super().__init__(model.signature, limits, joiner, Costs(measured), instances=len(self._runs), clock=clock)
        lone = measured.get(1, math.inf)
        self._inline_rows = int(INLINE_SECONDS / lone) if lone > 0 else 0
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

    @property
    def runs_at_once(self) -> bool:
        """Whether `run_now` has a chance: one row takes less time than handing it to a thread."""
        return self._inline_rows > 0 and not self._waiting

    def run_now(self, inputs: Arrays) -> Mapping[str, np.ndarray] | None:
        """Run a short request here and now; None where it is not short, or others are before it.

        Raises RequestError (400) for inputs that don't fit.
        """
        if not self._inline_rows or self._waiting or self._closing or not self._threads:
            return None
        rows = self._check(inputs)
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

    def _work(self, index: int) -> None:
        while items := self._take(index, wait=True):
            self._run(index, items)

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


def _as_is(error: Exception) -> Exception:
    return error


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"the model raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
