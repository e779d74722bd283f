"""A circuit breaker: after failures nobody waits for a broken neighbour, and now and then one asks whether it is back.

It opens on several failures in a row and on a lasting share of them. Source of the idea: Nygard, Release It! (2007).
It does no IO. Not here: what is called (see `redis_link`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

_KEPT = 0.9
"""Part of the score that outlives a call: the score of calls that all fail is 10, of one in ten about 1."""
_OPENS_AT = 2.5


class CircuitBreaker:
    """Closed: calls go through. Open: they don't, but for a trial after a delay that doubles with each failed trial."""

    def __init__(
        self, first_seconds: float = 0.5, longest_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin open, with a trial due at once: the first connection is made where no request waits for it."""
        self.is_open = True
        self.opened = 0
        """How often it opened."""
        self._first, self._longest = first_seconds, longest_seconds
        self._clock = clock
        self._score = 0.0
        self._delay = first_seconds
        self._next = clock()

    def succeeded(self) -> None:
        """Count a call that went well."""
        self._score *= _KEPT

    def failed(self) -> None:
        """Count a call that failed or took too long."""
        self._score = self._score * _KEPT + 1.0
        if self._score >= _OPENS_AT and not self.is_open:
            self.is_open = True
            self.opened += 1
            self._delay = self._first
            self._next = self._clock() + self._delay

    def claim_trial(self) -> bool:
        """Return whether a trial is due; the caller who is told so does it, and says how it went."""
        now = self._clock()
        if not self.is_open or now < self._next:
            return False
        self._next = now + self._delay
        self._delay = min(self._delay * 2, self._longest)
        return True

    def tried(self, *, well: bool) -> None:
        """Tell how the trial went: a good one closes the breaker."""
        if well:
            self.is_open = False
            self._score = 0.0
            self._delay = self._first
