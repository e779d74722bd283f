"""What a run costs, and whom to refuse when more comes than can be done.

A queue in front of a busy model makes everyone late, so with steady overload only those are let in who will be
answered about as fast as on an idle server; a burst still waits its turn. Overload is told by the work offered, refused
included, with an exponential window. After B. Maurer, "Fail at Scale" (ACM Queue 13:8, 2015): short queues under
standing overload.
No clock and no threads here: times come in as seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WINDOW, _BURST = 2.0, 64
"""Offered work is averaged over so many seconds, or the time that so many rows take: as many at once are a burst."""
_ENTER, _FULL, _LEAVE = 1.5, 1.05, 0.9
"""Of what the instances can do: above the first, or with half the queue taken above the second, it is overload; below
the third no longer."""
PATIENCE = 1.5
"""Under overload, of the time of a run alone on an idle server: who would take longer is refused."""
_LEARN = 0.1
_KNEE = 1.1


class Costs:
    """Seconds of a run by its rows, known from warm-up and corrected by every run since."""

    def __init__(self, measured: Mapping[int, float] | None = None) -> None:
        self._seconds: dict[int, float] = dict(measured or {})
        self._measured = dict(self._seconds)

    @property
    def known(self) -> bool:
        """Whether anything was seen."""
        return bool(self._seconds)

    def observe(self, rows: int, seconds: float) -> None:
        """Take a run into account; sizes are kept by powers of two."""
        size = 1 << (rows - 1).bit_length()
        scaled = seconds * size / rows if size != rows and rows > 1 else seconds
        before = self._seconds.get(size)
        self._seconds[size] = scaled if before is None else before + _LEARN * (scaled - before)

    def seconds(self, rows: int) -> float:
        """Return the time of a run of so many rows: between known sizes linear, beyond them in proportion."""
        return _between(self._seconds, rows)

    def unloaded(self, rows: int) -> float:
        """Return the time of a run as warm-up found it, or less; runs take longer while the server is busy."""
        return min(self.seconds(rows), _between(self._measured, rows) or math.inf)

    def best_rows(self, most: int) -> int:
        """Return the smallest number of rows that takes little more time a row than the best; `most` if unknown."""
        each = {size: seconds / size for size, seconds in self._seconds.items() if size <= most}
        if len(each) < 2:
            return most
        limit = _KNEE * min(each.values())
        return min(size for size, seconds in each.items() if seconds <= limit)


def _between(known: Mapping[int, float], rows: int) -> float:
    """Return the time of so many rows from times by rows; 0 where none is known."""
    if rows in known or not known:
        return known.get(rows, 0.0)
    sizes = sorted(known)
    above = next((size for size in sizes if size >= rows), None)
    if above is None:
        return known[sizes[-1]] * rows / sizes[-1]
    below = next((size for size in reversed(sizes) if size <= rows), None)
    if below is None:
        return known[above]
    share = (rows - below) / (above - below)
    return known[below] + share * (known[above] - known[below])


class Admission:
    """Decides on each request. `instances` runs go side by side, each of at most `batch_rows` rows."""

    def __init__(self, costs: Costs, instances: int, batch_rows: int) -> None:
        self._costs = costs
        self._instances = instances
        self._batch_rows = batch_rows
        self._demand = 0.0
        self._seen = 0.0
        self.overloaded = False

    def offer(self, now: float, rows: int, queue_share: float = 0.0) -> bool:
        """Count a request that came, whether it is let in or not; return whether overload began with it.

        `queue_share` of the queue is taken.
        """
        each = self._costs.seconds(self._batch_rows) / self._batch_rows
        window = max(_WINDOW, _BURST * each / self._instances)
        self._demand = self._demand * math.exp(min(0.0, self._seen - now) / window) + rows * each / window
        self._seen = now
        before = self.overloaded
        bound = _LEAVE if before else _FULL if queue_share > 0.5 else _ENTER
        self.overloaded = self._demand > bound * self._instances
        return self.overloaded and not before

    def fits(self, now: float, rows: int, waiting_rows: int, busy_until: Sequence[float]) -> bool:
        """Return whether a request may wait; `busy_until` says when each running instance will likely be free."""
        if not self.overloaded:
            return True
        free = len(busy_until) < self._instances
        if free and not waiting_rows:
            return True
        together = waiting_rows + rows
        wait = 0.0 if free else max(0.0, min(busy_until) - now)
        in_one_run = together <= max(self._batch_rows, rows)
        return in_one_run and wait + self._costs.seconds(together) <= PATIENCE * self._costs.unloaded(rows)
