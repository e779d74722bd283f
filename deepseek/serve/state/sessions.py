"""Conversations by id: earlier turns come back, within bounds, until nobody has said anything for some time.

A session belongs to the API key that began it: the same id under another key is another session. Appends at once are
both kept. With Redis several processes share sessions; while Redis is away, this process goes on with what it has seen
itself, and brings that to Redis later. Not here: bounds (see `turns`), stores (see `session_stores`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from deepseek.errors import RequestError
from deepseek.serve.rest.schema import Message
from deepseek.serve.state.redis_link import RedisDown
from deepseek.serve.state.session_stores import Kept, MemoryStore, Store, new_tag
from deepseek.serve.state.turns import Summarize, bounded, packed, unpacked

_LOG = logging.getLogger("deepseek.serve")
_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63}:)?[A-Za-z0-9_-]{1,64}")
"""An id, after the name of its key where there are keys (they never hold a colon)."""
_TRIES = 64
_MOST_PENDING = 10_000


class SessionStats(NamedTuple):
    """What is in this process's memory (copies of those in Redis too), and counts since the start."""

    sessions: int
    nbytes: int
    loads: int
    appends: int
    away: int
    """Times that Redis could not be reached."""


class SessionKeeper:
    """Sessions, as `deepseek.serve.rest.conversation.Sessions` wants them; used in one event loop."""

    def __init__(
        self,
        memory: MemoryStore,
        remote: Store | None = None,
        *,
        max_turns: int = 64,
        max_bytes: int = 256 << 10,
        summarize: Summarize | None = None,
    ) -> None:
        """A session keeps its last `max_turns` turns and about `max_bytes`; `summarize` tells what was dropped."""
        self._memory = memory
        self._remote = remote
        self._bounds = max_turns, max_bytes
        self._summarize = summarize
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._pending: OrderedDict[str, list[Message]] = OrderedDict()
        """What was appended here and is not in Redis yet."""
        self._loads = self._appends = self._away = 0

    async def load(self, session: str, owner: str | None = None, /) -> list[Message]:
        """Return the turns so far, oldest first; none for an unknown or expired id. Raises RequestError (400)."""
        name = _name(session, owner)
        self._loads += 1
        if self._remote is None:
            return _messages(name, self._memory.peek(name))
        async with self._lock_of(name):
            try:
                kept = await self._fetched(name, self._remote)
            except RedisDown:
                self._away += 1
                kept = self._memory.peek(name)
            return _messages(name, kept)

    async def append(self, session: str, messages: Sequence[Message], owner: str | None = None, /) -> None:
        """Add turns; the oldest go where there are too many. Raises RequestError (400)."""
        name = _name(session, owner)
        self._appends += 1
        async with self._lock_of(name):
            if self._remote is None:
                joined = [*_messages(name, self._memory.peek(name)), *messages]
                self._memory.set(name, Kept(packed(await self._within(joined)), new_tag()))
                return
            here = bounded([*_messages(name, self._memory.peek(name)), *messages], *self._bounds)
            self._memory.set(name, Kept(packed(here), new_tag()))
            self._pending.setdefault(name, []).extend(messages)
            self._pending.move_to_end(name)
            while len(self._pending) > _MOST_PENDING:
                self._pending.popitem(last=False)
            try:
                await self._bring(name, self._remote)
            except RedisDown:
                self._away += 1

    async def forget(self, session: str, owner: str | None = None, /) -> None:
        """Empty a session. Raises RequestError (400); 503 where Redis holds it and can't be reached."""
        name = _name(session, owner)
        empty = Kept(packed([]), new_tag())
        async with self._lock_of(name):
            self._pending.pop(name, None)
            self._memory.set(name, empty)
            if self._remote is None:
                return
            try:
                for _ in range(_TRIES):
                    kept = await self._remote.read(name)
                    if kept is None or await self._remote.write(name, empty.data, kept.tag, empty.tag):
                        return
            except RedisDown as error:
                raise RequestError("the session can't be reached now", status=503, fix="try again later") from error

    def stats(self) -> SessionStats:
        """Return the counters."""
        return SessionStats(len(self._memory), self._memory.nbytes, self._loads, self._appends, self._away)

    async def _fetched(self, name: str, remote: Store) -> Kept | None:
        """Return what Redis has, once it has what waits here. Raises RedisDown."""
        if name in self._pending:
            await self._bring(name, remote)
            return self._memory.peek(name)
        kept = await remote.read(name)
        if kept is not None:
            self._memory.set(name, kept)
            return kept
        copy = self._memory.peek(name)  # Redis came back empty: what is too old is not here either
        if copy is not None:
            await remote.write(name, copy.data, b"", copy.tag)
        return copy

    async def _bring(self, name: str, remote: Store) -> None:
        """Write to Redis what waits for it. Raises RedisDown, and it goes on waiting."""
        for attempt in range(_TRIES):
            kept = await remote.read(name)
            if kept is None:  # new, or Redis lost it: what is here is all there is
                whole = _messages(name, self._memory.peek(name)) or self._pending.get(name, [])
            else:
                whole = await self._within([*_messages(name, kept), *self._pending.get(name, [])])
            fresh = Kept(packed(whole), new_tag())
            if await remote.write(name, fresh.data, b"" if kept is None else kept.tag, fresh.tag):
                self._memory.set(name, fresh)
                self._pending.pop(name, None)
                return
            await asyncio.sleep(0.001 * min(attempt, 10))  # another process was quicker
        _LOG.warning("too many processes append to the session %r at once", name)

    async def _within(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages within bounds; a summary is made beside the event loop."""
        if self._summarize is None:
            return bounded(messages, *self._bounds)
        return await asyncio.to_thread(bounded, messages, *self._bounds, self._summarize)

    def _lock_of(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


def _name(session: str, owner: str | None) -> str:
    """Return the name under which a session is kept. Raises RequestError (400)."""
    name = session if owner is None else f"{owner}:{session}"
    if not _ID.fullmatch(name):
        raise RequestError("this is no session id", field="session_id", wanted="1 to 64 letters, digits, '-' and '_'")
    return name


def _messages(name: str, kept: Kept | None) -> list[Message]:
    if kept is None:
        return []
    try:
        return unpacked(kept.data)
    except (ValueError, TypeError, json.JSONDecodeError):
        _LOG.warning("the session %r holds something else than turns: it begins anew", name)
        return []
