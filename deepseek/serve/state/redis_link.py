"""A line to Redis that never holds anybody up: milliseconds a call, a breaker, connections made in the background.

Used in an event loop; in another loop it connects anew. Not here: what is kept there (see `redis_cache` and
`session_stores`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from deepseek.errors import ConfigError
from deepseek.lazy import require
from deepseek.serve.state.breaker import CircuitBreaker

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger("deepseek.serve")
_TRIAL_SECONDS = 1.0

T = TypeVar("T")


class RedisDown(Exception):  # noqa: N818 - no fault of ours or of a client: the caller goes on without
    """Redis does not answer in time, or was not asked because it did not lately."""


class RedisLink:
    """Calls of one Redis server, each within `seconds`."""

    def __init__(
        self,
        url: str,
        *,
        seconds: float = 0.005,
        connections: int = 8,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Raises MissingExtraError without the client, ConfigError for a URL that is none."""
        require("redis", "serve")
        self.breaker = breaker or CircuitBreaker()
        self._url = url
        self._seconds = seconds
        self._connections = connections
        self._busy = 0
        self._client: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trial: asyncio.Task[None] | None = None
        self._check_url()

    @property
    def is_up(self) -> bool:
        """Whether calls go through."""
        return not self.breaker.is_open

    @property
    def is_busy(self) -> bool:
        """Whether a call would have to wait for a connection."""
        return self._busy >= self._connections

    async def call(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        """Return what `command` returns of the client. Raises RedisDown, at once where Redis failed lately."""
        client = self._here()
        if self.breaker.is_open:
            self._begin_trial()
            raise RedisDown("Redis did not answer lately")
        from redis.exceptions import RedisError

        self._busy += 1
        try:
            async with asyncio.timeout(self._seconds):
                result = await command(client)
        except (RedisError, OSError, TimeoutError) as error:
            was_open = self.breaker.is_open
            self.breaker.failed()
            if self.breaker.is_open and not was_open:
                _LOG.warning("Redis does not answer (%s): going on without it", type(error).__name__)
            raise RedisDown(type(error).__name__) from error
        finally:
            self._busy -= 1
        self.breaker.succeeded()
        return result

    async def trial(self) -> bool:
        """Wait for a trial that is due or under way; return whether calls go through now."""
        self._here()
        self._begin_trial()
        if self._trial is not None:
            await asyncio.shield(self._trial)
        return self.is_up

    async def close(self) -> None:
        """Close the connections."""
        trial, client, self._trial, self._client = self._trial, self._client, None, None
        if self._loop is not asyncio.get_running_loop():
            return
        if trial is not None:
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
        if client is not None:
            await client.aclose()
        self.breaker.is_open = True

    def _here(self) -> Redis:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop, self._trial = self._connect(), loop, None
            self.breaker.is_open = True
        return self._client

    def _begin_trial(self) -> None:
        running = self._trial is not None and not self._trial.done()
        if not running and self.breaker.claim_trial():
            self._trial = asyncio.get_running_loop().create_task(self._try())

    async def _try(self) -> None:
        """Connect all connections; a good trial closes the breaker."""
        from redis.exceptions import RedisError

        client = self._client
        if client is None:
            return
        try:
            async with asyncio.timeout(_TRIAL_SECONDS):
                await asyncio.gather(*(_ping(client) for _ in range(self._connections)))
        except (RedisError, OSError, TimeoutError) as error:
            _LOG.debug("Redis is still away: %s", type(error).__name__)
            await client.connection_pool.disconnect()
            return
        self.breaker.tried(well=True)
        _LOG.info("Redis answers")

    def _connect(self) -> Redis:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=self._connections,
            timeout=_TRIAL_SECONDS,
            socket_timeout=_TRIAL_SECONDS,
            socket_connect_timeout=_TRIAL_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        return Redis.from_pool(pool)

    def _check_url(self) -> None:
        from redis.asyncio.connection import parse_url

        try:
            parse_url(self._url)
        except ValueError as error:  # what it says may hold the password
            raise ConfigError(
                "the address of Redis is none", wanted="redis://HOST:6379/0, rediss:// or unix://"
            ) from error


async def _ping(client: Any) -> None:
    await client.ping()
