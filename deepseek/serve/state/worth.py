"""Whether a cache is worth asking: it is switched off while hardly anything is found in it, and tried again later.

Time is counted in lookups, so an idle server decides nothing. Not here: the cache.
"""

from __future__ import annotations

_LONGEST = 64


class Worth:
    """Counts lookups in windows. Off, it lets `pause` lookups pass, then tries a window; each failure doubles that."""

    def __init__(self, *, window: int = 1024, least: float = 0.02, pause: int = 8192) -> None:
        self.is_on = True
        self._window = window
        self._least = least
        self._pause = pause
        self._factor = 1
        self._failed = False
        self._lookups = self._hits = self._repeats = 0
        self._evictions = 0

    def skip(self) -> None:
        """Count a lookup that was not done because the cache is off; the last one switches it on for a trial."""
        self._lookups += 1
        if self._lookups >= self._pause * self._factor:
            self.is_on = True
            self._lookups = self._hits = self._repeats = 0

    def count(self, *, hit: bool, again: bool, evictions: int) -> None:
        """Count a lookup: was it a hit, was the key seen before, how many entries had to go since the start."""
        self._lookups += 1
        self._hits += hit
        self._repeats += again
        if self._lookups < self._window:
            return
        # while nothing had to go the cache is still filling, and what comes again now will be a hit later
        good = self._hits if evictions > self._evictions else max(self._hits, self._repeats)
        if good >= self._least * self._lookups:
            self._failed = False
        else:
            self.is_on = False
            self._factor = min(self._factor * 2, _LONGEST) if self._failed else 1
            self._failed = True
        self._evictions = evictions
        self._lookups = self._hits = self._repeats = 0
