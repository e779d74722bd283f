"""Where rates and open requests of clients are kept: in one process, or in memory that several processes share.

Both hold a bounded number of clients and forget the ones that have been quiet longest. Shared memory is a table of
buckets with eight clients each, found by a keyed hash of the client's name, under one lock of the file (fcntl(2)),
which the system lets go when its holder dies. A lock that can't be had within milliseconds (its holder is stopped) is
done without: then a request may go uncounted, but none waits. Not here: what the rates are (see `limits`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import time
from collections import OrderedDict
from typing import Protocol, Self

from deepseek.serve.shared_file import SharedFile


class Rates(Protocol):
    """What a rate limiter keeps."""

    def spend(self, client: str, now: float, interval: float, room: float) -> float:
        """Take `interval` seconds off the `room` seconds that the client may spend at once, which come back with time.

        Return 0, or, where so much is not there, the seconds until it is; then nothing is taken.
        """
        ...

    def open(self, client: str, most: int) -> bool:
        """Count one more open request, unless the client has `most`; return whether it was counted."""
        ...

    def close(self, client: str) -> None:
        """Count one less."""
        ...


def _after(full_at: float, now: float, interval: float, room: float) -> tuple[float, float]:
    """Return when the bucket is full again after one more request, and the seconds that this is too early."""
    after = max(full_at, now) + interval
    early = after - now - room
    return after, early if early > 1e-9 else 0.0


class OwnRates:
    """Rates of one process; used from one thread."""

    def __init__(self, max_clients: int = 10_000) -> None:
        self._max_clients = max_clients
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._open: dict[str, int] = {}

    def spend(self, client: str, now: float, interval: float, room: float) -> float:
        """Take one request off a client's bucket (see `Rates`)."""
        after, early = _after(self._full_at.get(client, now), now, interval, room)
        if early:
            return early
        self._full_at[client] = after
        self._full_at.move_to_end(client)
        if len(self._full_at) > self._max_clients:
            self._forget(now)
        return 0.0

    def open(self, client: str, most: int) -> bool:
        """Count one more open request (see `Rates`)."""
        count = self._open.get(client, 0)
        if count >= most:
            return False
        self._open[client] = count + 1
        return True

    def close(self, client: str) -> None:
        """Count one less."""
        count = self._open.get(client, 0)
        if count > 1:
            self._open[client] = count - 1
        else:
            self._open.pop(client, None)

    def _forget(self, now: float) -> None:
        """Drop clients whose bucket is full; where there are none, the one not seen for longest."""
        for client in list(self._full_at)[: self._max_clients // 10]:
            if self._full_at[client] <= now:
                self._full_at.pop(client, None)
        while len(self._full_at) > self._max_clients:
            self._full_at.popitem(last=False)


_WAYS = 8
_BUCKETS = 2048
_DIGEST = 16
_KEY = 32
_TIME = struct.Struct("<d")
_COUNT = struct.Struct("<I")
_TABLE = _KEY + 8
"""Where the table begins: after the key of the hash and the number of places."""
_TRIES = 200
_PAUSE = 10e-6


class SharedRates:
    """Rates of several processes on one machine, whose monotonic clocks are one; up to 16,384 clients."""

    def __init__(self, file: SharedFile, place: int | None = None) -> None:
        """Take a file as `make` makes it, and this process's place in it (None: it only keeps the file).

        What the last owner of the place had open is closed: its requests ended with it.
        """
        self.file = file
        self._memory = file.memory
        (self._places,) = _COUNT.unpack_from(self._memory, _KEY)
        self._place = place or 0
        self._counts = struct.Struct(f"<{self._places}I")
        self._slot = struct.Struct(f"<{_DIGEST}sd{self._places}I")
        import fcntl  # POSIX only, as are workers

        self._lockf = functools.partial(fcntl.lockf, file.descriptor)
        self._take, self._give = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
        key = self._memory[:_KEY]
        self._digest = functools.lru_cache(4096)(functools.partial(_digest, key))
        if place is not None:
            held = self._lock()
            self._close_all(place)
            self._unlock(held)

    @classmethod
    def make(cls, places: int) -> Self:
        """Return an empty table for so many processes."""
        slot = struct.calcsize(f"<{_DIGEST}sd{places}I")
        file = SharedFile.make("rates", _TABLE + _BUCKETS * _WAYS * slot)
        file.memory[:_KEY] = os.urandom(_KEY)
        _COUNT.pack_into(file.memory, _KEY, places)
        return cls(file)

    def spend(self, client: str, now: float, interval: float, room: float) -> float:
        """Take one request off a client's bucket (see `Rates`)."""
        digest = self._digest(client)
        held = self._lock()
        try:
            start = self._find(digest)
            full_at = now if start is None else _TIME.unpack_from(self._memory, start + _DIGEST)[0]
            after, early = _after(full_at, now, interval, room)
            if not early:
                start = self._claim(digest) if start is None else start
                _TIME.pack_into(self._memory, start + _DIGEST, after)
        finally:
            self._unlock(held)
        return early

    def open(self, client: str, most: int) -> bool:
        """Count one more open request (see `Rates`)."""
        digest = self._digest(client)
        held = self._lock()
        try:
            start = self._find(digest)
            if start is None:
                start = self._claim(digest)
            if sum(self._open_of(start)) >= most:
                return False
            self._add(start, 1)
            return True
        finally:
            self._unlock(held)

    def close(self, client: str) -> None:
        """Count one less."""
        digest = self._digest(client)
        held = self._lock()
        try:
            start = self._find(digest)
            if start is not None and self._open_of(start)[self._place]:
                self._add(start, -1)
        finally:
            self._unlock(held)

    def _slots(self, digest: bytes) -> range:
        bucket = int.from_bytes(digest[:4], "little") % _BUCKETS
        start = _TABLE + bucket * _WAYS * self._slot.size
        return range(start, start + _WAYS * self._slot.size, self._slot.size)

    def _find(self, digest: bytes) -> int | None:
        """Return where a client's slot begins."""
        slots = self._slots(digest)
        start = self._memory.find(digest, slots.start, slots.stop)
        return start if start in slots else None  # -1, or the same bytes in the middle of a slot

    def _claim(self, digest: bytes) -> int:
        """Make a slot the client's: the one quiet for longest, and among those one without open requests."""

        def age(start: int) -> tuple[bool, float]:
            return any(self._open_of(start)), _TIME.unpack_from(self._memory, start + _DIGEST)[0]

        start = min(self._slots(digest), key=age)
        self._slot.pack_into(self._memory, start, digest, 0.0, *[0] * self._places)
        return start

    def _open_of(self, start: int) -> tuple[int, ...]:
        return self._counts.unpack_from(self._memory, start + _DIGEST + _TIME.size)

    def _add(self, start: int, number: int) -> None:
        place = start + _DIGEST + _TIME.size + _COUNT.size * self._place
        _COUNT.pack_into(self._memory, place, _COUNT.unpack_from(self._memory, place)[0] + number)

    def _close_all(self, place: int) -> None:
        """Set to zero what one process has open."""
        first = _TABLE + _DIGEST + _TIME.size + _COUNT.size * place
        for start in range(first, first + _BUCKETS * _WAYS * self._slot.size, self._slot.size):
            if _COUNT.unpack_from(self._memory, start)[0]:
                _COUNT.pack_into(self._memory, start, 0)

    def _lock(self) -> bool:
        """Lock the table against other processes; return whether that went."""
        for _ in range(_TRIES):
            try:
                self._lockf(self._take)
                return True
            except OSError:
                time.sleep(_PAUSE)
        return False

    def _unlock(self, held: bool) -> None:
        if held:
            self._lockf(self._give)


def _digest(key: bytes, client: str) -> bytes:
    return hashlib.blake2b(client.encode("utf-8", "surrogatepass"), digest_size=_DIGEST, key=key).digest()
