"""How many requests one client may make: a rate with a burst, and how many at once. Memory is bounded.

The rate is the generic cell rate algorithm (ITU-T I.371, the same as a token bucket): one number a client, the time at
which its bucket is full again. A client is a key's name, or the network address where no keys are used (an IPv6 address
counts as its /64, which one subscriber owns). Not here: queues of engines, which refuse for themselves.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from deepseek.errors import RequestError


class TooManyRequests(RequestError):
    """The client has spent its share; `retry_after` is in whole seconds."""

    def __init__(self, problem: str, retry_after: int, wanted: str) -> None:
        self.retry_after = retry_after
        super().__init__(problem, status=429, wanted=wanted, fix=f"try again in {retry_after} s")


class RateLimiter:
    """Rates and counts by client; used from one thread (the event loop's)."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        *,
        burst: int | None = None,
        concurrent: int | None = None,
        max_clients: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the rate for clients without one of their own (None: any rate) and the requests each may have open.

        `burst`: requests that may come at once, by default those of 10 seconds and at least one.
        """
        self._rate = requests_per_minute
        self._burst = burst
        self._concurrent = concurrent
        self._max_clients = max_clients
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._open: dict[str, int] = {}

    @property
    def limits_concurrency(self) -> bool:
        """Whether `acquire` and `release` matter."""
        return self._concurrent is not None

    def check(self, client: str, requests_per_minute: int | None = None) -> RequestError | None:
        """Count a request; return the refusal (429) where the client is over its rate, which counts nothing."""
        rate = requests_per_minute or self._rate
        if rate is None:
            return None
        now = self._clock()
        interval = 60.0 / rate
        room = interval * (self._burst or max(1, rate // 6))
        full_at = max(self._full_at.get(client, now), now) + interval
        if full_at - now > room + 1e-9:
            wait = max(1, math.ceil(full_at - now - room))
            return TooManyRequests("too many requests", wait, f"at most {rate} a minute")
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > self._max_clients:
            self._forget(now)
        return None

    def acquire(self, client: str) -> RequestError | None:
        """Open a request that `release` closes; return the refusal (429) where the client has too many open."""
        if self._concurrent is None:
            return None
        count = self._open.get(client, 0)
        if count >= self._concurrent:
            return TooManyRequests("too many requests at once", 1, f"at most {self._concurrent} open")
        self._open[client] = count + 1
        return None

    def release(self, client: str) -> None:
        """Close a request that `acquire` opened."""
        if self._concurrent is None:
            return
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


def client_of(address: str | None) -> str:
    """Return under which name a network address is counted: itself, the /64 of an IPv6 one, "local" without any."""
    if not address:
        return "local"
    if ":" not in address:
        return address
    import ipaddress

    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    return str(found.ipv4_mapped or f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64")
