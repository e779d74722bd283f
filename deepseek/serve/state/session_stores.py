"""Where sessions lie: in this process's memory, or in Redis. A write succeeds only on what its writer has read.

So two appends at once lose nothing: the second is told that it was late, and reads again. Not here: what a session
holds (see `sessions`).
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from deepseek.serve.state.redis_link import RedisLink

_SWAP = """
if (redis.call('HGET', KEYS[1], 'tag') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'tag', ARGV[2], 'data', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""


class Kept(NamedTuple):
    """What is stored, and the tag of this version of it."""

    data: bytes
    tag: bytes


class Store(Protocol):
    """Data by name, each until it was not written for some time."""

    async def read(self, name: str) -> Kept | None:
        """Return what is stored. Raises RedisDown."""
        ...

    async def write(self, name: str, data: bytes, expected: bytes, tag: bytes) -> bool:
        """Store `data` as version `tag` if version `expected` is there (b"": nothing), and say so. Raises RedisDown."""
        ...


class MemoryStore:
    """In this process: `max_bytes` in all, and the one that was not used for longest goes first."""

    def __init__(self, seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    async def read(self, name: str) -> Kept | None:
        """Return what is stored."""
        return self.peek(name)

    async def write(self, name: str, data: bytes, expected: bytes, tag: bytes) -> bool:
        """Store `data` if version `expected` is there."""
        found = self.peek(name)
        if (b"" if found is None else found.tag) != expected:
            return False
        self.set(name, Kept(data, tag))
        return True

    def peek(self, name: str) -> Kept | None:
        """Return what is stored and not too old."""
        entry = self._kept.get(name)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            self._drop(name)
            return None
        self._kept.move_to_end(name)
        return entry[1]

    def set(self, name: str, kept: Kept) -> None:
        """Store whatever is there."""
        if name in self._kept:
            self._drop(name)
        now = self._clock()
        self._kept[name] = now + self._seconds, kept
        self._bytes += len(kept.data)
        oldest = next(iter(self._kept))
        while oldest != name and (self._bytes > self._max_bytes or self._kept[oldest][0] <= now):
            self._drop(oldest)
            oldest = next(iter(self._kept))

    def _drop(self, name: str) -> None:
        self._bytes -= len(self._kept.pop(name)[1].data)


class RedisStore:
    """In Redis, for several processes; Redis itself lets go what is too old."""

    def __init__(self, link: RedisLink, seconds: float, prefix: str = "deepseek:session:") -> None:
        self.link = link
        self._milliseconds = max(1, int(seconds * 1000))
        self._prefix = prefix

    async def read(self, name: str) -> Kept | None:
        """Return what is stored. Raises RedisDown."""
        key = self._prefix + name

        async def command(client: Any) -> Any:
            return await client.hmget(key, "tag", "data")

        tag, data = await self.link.call(command)
        return None if tag is None or data is None else Kept(data, tag)

    async def write(self, name: str, data: bytes, expected: bytes, tag: bytes) -> bool:
        """Store `data` if version `expected` is there. Raises RedisDown."""
        key = self._prefix + name

        async def command(client: Any) -> Any:
            return await client.eval(_SWAP, 1, key, expected, tag, data, self._milliseconds)

        return bool(await self.link.call(command))


def new_tag() -> bytes:
    """Return a tag that no other version has."""
    return secrets.token_bytes(12)
