"""What a server keeps between requests, as options, and the objects they make. Not here: what these objects do."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from deepseek.config import Config
from deepseek.serve.state.cache import LruCache
from deepseek.serve.state.redis_cache import RedisCache
from deepseek.serve.state.redis_link import RedisLink
from deepseek.serve.state.response_cache import AnswerCache
from deepseek.serve.state.session_stores import MemoryStore, RedisStore
from deepseek.serve.state.sessions import SessionKeeper

_SESSION_CALL_SECONDS = 0.25
"""A session is worth waiting for a little longer than a cached answer."""
_BESIDE_REDIS = 64 << 20


class StateOptions(Config):
    """What a server keeps between requests."""

    cache_bytes: int | None = Field(None, ge=0)
    """Memory for answers that are asked for again; 0 keeps none and spares each request the look-up. Unset: 0, and with
    Redis 64 MiB."""
    cache_seconds: float = Field(3600.0, gt=0, le=30 * 86_400)
    """How long an answer is kept."""
    session_bytes: int = Field(64 << 20, ge=0)
    """Memory for conversations that name a `session_id`; 0 keeps none."""
    session_seconds: float = Field(3600.0, gt=0, le=30 * 86_400)
    """How long a conversation is kept after its last turn."""
    session_turns: int = Field(64, ge=1, le=1024)
    """Turns of a conversation that are kept."""
    redis_url: str | None = Field(default=None, repr=False)
    """A Redis server that several processes share answers and conversations in: redis://HOST:6379/0."""
    redis_ms: float = Field(5.0, gt=0, le=1000)
    """The longest that a request waits for a cached answer from Redis, in milliseconds."""


class State(NamedTuple):
    """The cache and the sessions of a server; None where they are switched off."""

    cache: AnswerCache | None
    sessions: SessionKeeper | None
    links: tuple[RedisLink, ...] = ()

    async def start(self) -> None:
        """Connect to Redis, so that the first requests find it; without it the server starts all the same."""
        for link in self.links:
            await link.trial()

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self.cache is not None:
            await self.cache.close()
        for link in self.links:
            await link.close()


def build_state(options: StateOptions) -> State:
    """Return what `options` ask for. Raises MissingExtraError without Redis' client where it is to be used."""
    url, links = options.redis_url, list[RedisLink]()
    cache = sessions = None
    cache_bytes = options.cache_bytes if options.cache_bytes is not None else _BESIDE_REDIS if url is not None else 0
    if cache_bytes:
        remote = None
        if url is not None:
            links.append(RedisLink(url, seconds=options.redis_ms / 1000))
            remote = RedisCache(links[-1], options.cache_seconds)
        cache = AnswerCache(LruCache(cache_bytes, options.cache_seconds), remote)
    if options.session_bytes:
        store = None
        if url is not None:
            links.append(RedisLink(url, seconds=_SESSION_CALL_SECONDS))
            store = RedisStore(links[-1], options.session_seconds)
        memory = MemoryStore(options.session_seconds, options.session_bytes)
        sessions = SessionKeeper(memory, store, max_turns=options.session_turns)
    return State(cache, sessions, tuple(links))
