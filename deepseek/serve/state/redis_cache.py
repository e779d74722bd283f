"""Answers in Redis, so that several processes share them and a restart keeps them. Redis may die at any moment.

Reads take a few milliseconds at most; writes are done beside the request, and dropped where they pile up. Each value
carries a digest of key and body: what was cut, mixed up or written by somebody else is not found.
Not here: which answers are worth keeping (see `response_cache`).
"""

from __future__ import annotations

import asyncio
import hashlib

from deepseek.serve.state.redis_link import RedisDown, RedisLink

_DIGEST = 16
_PENDING = 64


class RedisCache:
    """Bodies by key below `prefix`, each for `seconds`."""

    def __init__(self, link: RedisLink, seconds: float, prefix: str = "deepseek:answer:") -> None:
        self.link = link
        self.dropped = 0
        """Writes that were given up."""
        self._milliseconds = max(1, int(seconds * 1000))
        self._prefix = prefix
        self._writes: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> bytes | None:
        """Return a body; None where there is none, and where Redis can't say in time."""
        if self.link.is_busy:
            return None
        name = self._prefix + key
        try:
            value = await self.link.call(lambda client: client.get(name))
        except RedisDown:
            return None
        if not isinstance(value, bytes) or value[:_DIGEST] != _digest(key, value[_DIGEST:]):
            return None
        return value[_DIGEST:]

    def put(self, key: str, body: bytes) -> None:
        """Write a body beside the request."""
        if len(self._writes) >= _PENDING or not self.link.is_up:
            self.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._write(key, body))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Finish what is being written, and close the connections."""
        await asyncio.gather(*self._writes)
        await self.link.close()

    async def _write(self, key: str, body: bytes) -> None:
        name, value = self._prefix + key, _digest(key, body) + body
        try:
            await self.link.call(lambda client: client.set(name, value, px=self._milliseconds))
        except RedisDown:
            self.dropped += 1


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, key=key.encode()[:64]).digest()
