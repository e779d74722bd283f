"""What waits for a model of fixed shape: who is let in, what goes into the next run, and what became of it all.

Not here: runs and their threads (see `engine`), and the rule by which requests are refused (see `admission`).
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deepseek.errors import RequestError
from deepseek.serve.tensor.admission import Admission, Costs
from deepseek.serve.tensor.batch import Arrays, Joiner
from deepseek.serve.tensor.datatypes import ModelSignature
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.tensor.requests import Answer, Cancelled, Item, Waiter, deliver, stopping, too_late, too_many

_SHUT_SECONDS, _SHUT_SHARE = 0.001, 0.1
"""How long `gate` stays shut once it was: so long, or this share of a run, whichever is less."""


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


class TensorQueue:
    """Requests that wait or run. All of it changes under one lock."""

    def __init__(
        self,
        signature: ModelSignature,
        limits: TensorLimits,
        joiner: Joiner,
        costs: Costs,
        *,
        instances: int,
        clock: Callable[[], float],
    ) -> None:
        self.signature, self.limits = signature, limits
        self._check = signature.checker()
        self._joiner, self._costs, self._instances, self._clock = joiner, costs, instances, clock
        self.batch_rows = costs.best_rows(limits.max_batch if signature.batch_axis else 1)
        """The most rows of one run."""
        self._admission = Admission(costs, instances, self.batch_rows)
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
        runs = math.ceil(rows / self.batch_rows / self._instances)
        return max(1, min(60, math.ceil(runs * self._costs.seconds(self.batch_rows))))

    def _queue(self, inputs: Arrays, sink: Callable[[Answer], None] | Waiter, deadline: float | None) -> Item:
        rows = self._check(inputs)
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
        idle = max(1, self._instances - len(self._running))
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
