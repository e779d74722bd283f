"""Answers in this process's memory: the least recently used goes first when the bytes are spent, each has its time.

Not here: which answers are worth keeping (see `response_cache`), and memory that several processes share
(see `redis_cache`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from deepseek.errors import ConfigError

_OVERHEAD = 256
"""Bytes that an entry costs beside its body: key, dictionary, tuple."""


class LruCache:
    """Bodies by key within `max_bytes`, each for `seconds`. Any thread may use it."""

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError for limits that can't hold anything."""
        if max_bytes < 1 or not seconds > 0:
            raise ConfigError("a cache needs room and time", found=f"{max_bytes} bytes, {seconds} s", wanted="above 0")
        self.max_bytes = max_bytes
        self.evictions = 0
        """Entries that had to go while they were still good."""
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, what they cost beside their bodies included."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        """Return a body that is here and not too old, which makes it the most recently used."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            until, body = entry
            if until <= self._clock():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return body

    def put(self, key: str, body: bytes) -> bool:
        """Keep a body and return True; one that would take more than an eighth of the room is not kept."""
        size = len(body) + len(key) + _OVERHEAD
        with self._lock:
            if key in self._entries:
                self._drop(key)
            if size > self.max_bytes // 8:
                return False
            now = self._clock()
            while self._bytes + size > self.max_bytes:
                oldest = next(iter(self._entries))
                self.evictions += self._entries[oldest][0] > now
                self._drop(oldest)
            self._entries[key] = now + self._seconds, body
            self._bytes += size
        return True

    def remove(self, key: str) -> None:
        """Forget an entry, if it is here."""
        with self._lock:
            if key in self._entries:
                self._drop(key)

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _drop(self, key: str) -> None:
        _, body = self._entries.pop(key)
        self._bytes -= len(body) + len(key) + _OVERHEAD
