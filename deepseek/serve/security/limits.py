"""How many requests one client may make: a rate with a burst, and how many at once. Memory is bounded.

The rate is the generic cell rate algorithm (ITU-T I.371, the same as a token bucket): one number a client, the time at
which its bucket is full again. A client is a key's name, or the network address where no keys are used (an IPv6 address
counts as its /64, which one subscriber owns). Not here: where these numbers are kept, by one process or by several
(see `rates`), and queues of engines, which refuse for themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from deepseek.errors import RequestError
from deepseek.serve.security.rates import OwnRates, Rates


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
        rates: Rates | None = None,
    ) -> None:
        """Take the rate for clients without one of their own (None: any rate) and the requests each may have open.

        `burst`: requests that may come at once, by default those of 10 seconds and at least one. `rates` are those of
        several processes together; without them up to `max_clients` are kept here.
        """
        self._rate = requests_per_minute
        self._burst = burst
        self._concurrent = concurrent
        self._clock = clock
        self._rates = rates or OwnRates(max_clients)
        self.refused = {"rate": 0, "concurrent": 0}
        """Requests that were over a limit, by which one."""

    def check(self, client: str, requests_per_minute: int | None = None) -> RequestError | None:
        """Count a request; return the refusal (429) where the client is over its rate, which counts nothing."""
        rate = requests_per_minute or self._rate
        if rate is None:
            return None
        interval = 60.0 / rate
        room = interval * (self._burst or max(1, rate // 6))
        early = self._rates.spend(client, self._clock(), interval, room)
        if not early:
            return None
        self.refused["rate"] += 1
        return TooManyRequests("too many requests", max(1, math.ceil(early)), f"at most {rate} a minute")

    def acquire(self, client: str) -> RequestError | None:
        """Open a request that `release` closes; return the refusal (429) where the client has too many open."""
        if self._concurrent is None or self._rates.open(client, self._concurrent):
            return None
        self.refused["concurrent"] += 1
        return TooManyRequests("too many requests at once", 1, f"at most {self._concurrent} open")

    def release(self, client: str) -> None:
        """Close a request that `acquire` opened."""
        if self._concurrent is not None:
            self._rates.close(client)


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
