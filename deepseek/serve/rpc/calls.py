"""What every call passes first: key, rate, room; and last: errors as status codes, an id, metrics.

Calls come here as bytes, and answers leave as bytes: a message that can't be read is the client's error, which
grpcio's own deserializers would report as the server's.
Not here: what a call does (see `inference`, `generation`), and how gRPC puts it (see `protocol`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from deepseek.errors import RequestError
from deepseek.serve.rest.answer import internal_error
from deepseek.serve.rest.wire import sentence
from deepseek.serve.rpc.protocol import StalledError, Write, code_name, writer
from deepseek.serve.security.limits import RateLimiter, client_of

if TYPE_CHECKING:
    from deepseek.serve.security.audit import AuditLog
    from deepseek.serve.security.keys import KeyId

_LOG = logging.getLogger("deepseek.serve")


class Keys(Protocol):
    """Whose key a presented one is."""

    def allows(self, presented: str) -> KeyId | None:
        """Return the owner, None for a key that is not known."""
        ...


class Counter(Protocol):
    """Where finished calls are counted."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a call; `status` is the HTTP status of the same outcome over REST."""
        ...


class Call(NamedTuple):
    """What a method may know of the call beside its message."""

    id: str
    client: str
    rate: int | None
    state: dict[str, Any]
    """What the audit log shall tell of the call: key, model, version."""
    remaining: Callable[[], float | None]
    """Returns the seconds for which the client still waits; None for a client that waits for ever."""

    @property
    def deadline(self) -> float | None:
        """When the client stops waiting, by `time.monotonic`."""
        seconds = self.remaining()
        return None if seconds is None else time.monotonic() + seconds


Unary = Callable[[bytes, Call], Awaitable[bytes]]
ServerStream = Callable[[bytes, Call, Write], Awaitable[None]]
BothStream = Callable[[AsyncIterator[bytes], Call, Write], Awaitable[None]]


class Gate:
    """Wraps the methods of all services. Used on one event loop."""

    def __init__(
        self,
        *,
        keys: Keys | None,
        limiter: RateLimiter | None,
        metrics: Counter | None,
        audit: AuditLog | None,
        max_calls: int,
        retry_after: Callable[[], int],
    ) -> None:
        self._keys = keys
        self._limiter = limiter
        self._metrics = metrics
        self._audit = audit
        self._max_calls = max_calls
        self._retry_after = retry_after
        self._ids = _request_ids()
        self._is_guarded = keys is not None or limiter is not None
        self._is_told = any(item is not None for item in (limiter, metrics, audit))
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._open_tasks: set[asyncio.Task[Any] | None] = set()
        """Those of methods that are open to everyone (health)."""
        self._evicted: set[asyncio.Task[Any]] = set()
        self.stopping = False

    def unary(self, route: str, method: Unary, *, is_open: bool = False) -> Any:
        """Return the handler of a method with one message each way."""
        import grpc  # type: ignore[import-untyped]

        async def handle(raw: bytes, context: Any) -> bytes:
            answer: bytes = await self._handle(route, method, is_open, raw, context)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)

    def server_stream(self, route: str, method: ServerStream, *, is_open: bool = False) -> Any:
        """Return the handler of a method that answers with a stream."""
        import grpc

        async def handle(raw: bytes, context: Any) -> None:
            write = writer(context)
            await self._handle(route, lambda given, call: method(given, call, write), is_open, raw, context)

        return grpc.unary_stream_rpc_method_handler(handle)

    def both_stream(self, route: str, method: BothStream) -> Any:
        """Return the handler of a method with a stream each way."""
        import grpc

        async def handle(messages: AsyncIterator[bytes], context: Any) -> None:
            write = writer(context)
            await self._handle(route, lambda given, call: method(given, call, write), False, messages, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    def count(self, call: Call) -> None:
        """Count one more question of a call that asks several. Raises RequestError (429)."""
        if self._limiter is not None and (refusal := self._limiter.check(call.client, call.rate)) is not None:
            raise refusal

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, let those on their way finish for `seconds`, then fail the rest with 503."""
        self.stopping = True
        running = [task for task in self._tasks if task is not None]
        if running:
            await asyncio.wait(running, timeout=seconds)
        self._evicted = {task for task in (*self._tasks, *self._open_tasks) if task is not None}
        for task in self._evicted:
            task.cancel()
        if self._evicted:
            await asyncio.wait(self._evicted, timeout=5.0)

    async def _handle(
        self, route: str, method: Callable[[Any, Call], Awaitable[Any]], is_open: bool, given: Any, context: Any
    ) -> Any:
        """Run a method and tell its end, whatever it is, to the client, the metrics and the audit log."""
        started = time.monotonic()
        request_id = next(self._ids)
        status = 499
        tasks = self._open_tasks if is_open else self._tasks
        task = asyncio.current_task()
        call = None
        try:
            call = self._admit(context, request_id, is_open, len(tasks))
            tasks.add(task)
            answer = await method(given, call)
            context.set_trailing_metadata((("x-request-id", request_id),))
            status = 200
            return answer
        except RequestError as error:
            refusal, status = error, error.status
        except asyncio.CancelledError:
            if task is None or task not in self._evicted:
                remaining = context.time_remaining()
                status = 504 if remaining is not None and remaining <= 0 else 499
                raise
            task.uncancel()
            refusal, status = _stopping(), 503
        except Exception as error:
            _LOG.error("request %s failed", request_id, exc_info=error)
            refusal, status = internal_error(request_id), 500
        finally:
            tasks.discard(task)
            if self._is_told:
                self._tell(context, route, request_id, call, status, time.monotonic() - started)
        if status != 499:
            await self._refuse(context, refusal, request_id)

    def _admit(self, context: Any, request_id: str, is_open: bool, running: int) -> Call:
        """Raise RequestError for a call that may not go on: 401, 429 or 503."""
        client, rate = "", None
        state: dict[str, Any] = {}
        if self._is_guarded and not is_open:
            client, rate = self._identify(context, state)
        if self.stopping:
            raise _stopping()
        if running >= self._max_calls:
            raise RequestError("the server has too many calls at once", status=429, fix="try again later")
        call = Call(request_id, client, rate, state, context.time_remaining)
        if client and self._limiter is not None:
            self.count(call)
            if (refusal := self._limiter.acquire(client)) is not None:
                raise refusal
            state["held"] = True
        return call

    def _tell(self, context: Any, route: str, request_id: str, call: Call | None, status: int, seconds: float) -> None:
        """Give back what the limiter holds, and tell metrics and audit log."""
        state = {} if call is None else call.state
        if call is not None and state.pop("held", False) and self._limiter is not None:
            self._limiter.release(call.client)
        if self._metrics is not None:
            self._metrics.request(route, status, seconds)
        if self._audit is not None:
            record = {"request_id": request_id, **state, "client": context.peer(), "method": "GRPC", "route": route}
            self._audit.write({**record, "status": status, "seconds": round(seconds, 6)})

    def _identify(self, context: Any, state: dict[str, Any]) -> tuple[str, int | None]:
        """Return under which name the limiter counts this call, and that client's own rate. Raises RequestError (401).

        The names are those that the gateway of the REST interface uses, so both count together.
        """
        client = f"address {_address(context.peer())}"
        if self._keys is None:
            return client, None
        key = _presented(context)
        owner = self._keys.allows(key) if key else None
        if owner is None:
            refusal = self._limiter.check(client) if self._limiter is not None else None  # guesses count too
            raise refusal or RequestError(
                "missing or wrong API key", status=401, wanted="the header Authorization: Bearer KEY"
            )
        state["key"] = owner.name
        return f"key {owner.name}", owner.requests_per_minute

    async def _refuse(self, context: Any, error: RequestError, request_id: str) -> None:
        """End the call with the error's code and sentence; beside them what REST puts into headers."""
        import grpc

        if isinstance(error, StalledError):
            with contextlib.suppress(grpc.aio.InternalError):
                await error.pending
        trailing = [("x-request-id", request_id)]
        if error.status in (429, 503):
            trailing.append(("retry-after", str(getattr(error, "retry_after", None) or self._retry_after())))
        if error.field is not None:
            trailing.append(("x-error-field", ascii(error.field)[1:-1][:64]))  # only printable ASCII can be sent
        code = getattr(grpc.StatusCode, code_name(error.status))
        await context.abort(code, sentence(error), tuple(trailing))


def _request_ids() -> Iterator[str]:
    """Yield ids of 128 random bits; they name requests, they guard nothing."""
    bits = random.Random(os.urandom(32)).getrandbits
    while True:
        yield f"{bits(128):032x}"


def _stopping() -> RequestError:
    return RequestError("the server is stopping", status=503, fix="try again in a moment")


def _presented(context: Any) -> str:
    """Return the key in the call's metadata, "" without one."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str):
            scheme, _, key = value.partition(" ")
            return key.strip() if scheme.lower() == "bearer" else ""
    return ""


def _address(peer: str) -> str:
    """Return how a peer such as `ipv4:127.0.0.1:4242` or `ipv6:%5B::1%5D:4242` is counted."""
    kind, _, address = unquote(peer).partition(":")
    return client_of(address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None)
