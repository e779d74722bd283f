"""The cache of answers: this process's memory first, then Redis where there is one; only what is asked for again.

An answer is kept from its second time on (a flood of different requests drives nothing out), and while hardly
anything is found the cache switches itself off. It never fails: what it can't do, it leaves.
Not here: keys, which say what an answer depends on (see `deepseek.serve.rest.response_cache`).
"""

from __future__ import annotations

from typing import NamedTuple

from deepseek.serve.state.cache import LruCache
from deepseek.serve.state.frequency import FrequencySketch
from deepseek.serve.state.redis_cache import RedisCache
from deepseek.serve.state.worth import Worth


class CacheStats(NamedTuple):
    """Counts since the start; from `entries` on what is now. `is_remote_up` is None without Redis."""

    hits: int
    remote_hits: int
    misses: int
    skipped: int
    """Lookups that were not done because the cache was off."""
    stored: int
    refused: int
    """Answers not kept because they were asked for once only."""
    entries: int
    nbytes: int
    is_on: bool
    is_remote_up: bool | None


class AnswerCache:
    """Answers by key, as `deepseek.serve.rest.response_cache.ResponseCache` wants them; used in one event loop."""

    def __init__(self, local: LruCache, remote: RedisCache | None = None, *, worth: Worth | None = None) -> None:
        self._local = local
        self._remote = remote
        self._worth = worth or Worth()
        self._sketch = FrequencySketch()
        self._hits = self._remote_hits = self._misses = self._skipped = self._stored = self._refused = 0

    async def get(self, key: str, /) -> bytes | None:
        """Return an answer, or None."""
        worth = self._worth
        if not worth.is_on:
            worth.skip()
            self._skipped += 1
            return None
        again = self._sketch.add(key) > 1
        body = self._local.get(key)
        if body is None and again and self._remote is not None:  # what nobody asked for before is not looked for far
            body = await self._remote.get(key)
            if body is not None:
                self._remote_hits += 1
                self._local.put(key, body)
        hit = body is not None
        self._hits += hit
        self._misses += not hit
        worth.count(hit=hit, again=again, evictions=self._local.evictions)
        return body

    async def put(self, key: str, body: bytes, /) -> None:
        """Keep an answer that was asked for before; the others are let go."""
        if not self._worth.is_on:
            return
        if self._sketch.count(key) < 2:
            self._refused += 1
            return
        self._stored += self._local.put(key, body)
        if self._remote is not None:
            self._remote.put(key, body)

    def stats(self) -> CacheStats:
        """Return the counters."""
        counts = (self._hits, self._remote_hits, self._misses, self._skipped, self._stored, self._refused)
        up = None if self._remote is None else self._remote.link.is_up
        return CacheStats(*counts, len(self._local), self._local.nbytes, self._worth.is_on, up)

    async def close(self) -> None:
        """Let Redis go."""
        if self._remote is not None:
            await self._remote.close()
