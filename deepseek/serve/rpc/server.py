"""The gRPC server: its socket, its bounds, its start and end; on a thread with its own event loop, or on the caller's.

Not here: methods (see `inference`, `generation`, `health`) and what every call passes (see `calls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, Self

from deepseek.errors import ConfigError, RequestError, nearest
from deepseek.lazy import require
from deepseek.serve.monitoring.metrics import PlainMetrics
from deepseek.serve.orders import Orders
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rpc.calls import BothStream, Call, Gate, Keys
from deepseek.serve.rpc.generation import Generation
from deepseek.serve.rpc.health import Health, reflection_handlers
from deepseek.serve.rpc.inference import Inference
from deepseek.serve.rpc.limits import RpcLimits as RpcLimits
from deepseek.serve.rpc.messages import GENERATION, INFERENCE
from deepseek.serve.rpc.protocol import Write
from deepseek.serve.speech.rpc import SpeechRecognition
from deepseek.serve.speech.session import Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from deepseek.serve.rest.door import Guard
    from deepseek.serve.service import Service

_LOG = logging.getLogger("deepseek.serve")
_METADATA_BYTES = 16 * 1024
_IDLE_CONNECTION_MS = 600_000
_TELL_SECONDS = 0.05
"""What watchers of health get to hear that the server stops."""
_OPEN = frozenset({"ServerLive", "ServerReady"})
"""Methods that need no key: the probes, as over REST."""


class Certificate(Protocol):
    """A certificate and its key (see `deepseek.serve.security.tls`)."""

    def pem(self) -> tuple[bytes, bytes]:
        """Return the private key and the certificate chain."""
        ...


class RpcServer:
    """Serves a `Service` over gRPC.

    with RpcServer(service, port=8081) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")

    `with` runs it on a thread of its own; `await start()` and `await stop()` on the caller's event loop, which is the
    one to choose where a rate limiter is shared with other servers on that loop. The service is started and closed by
    its owner. `guard` is that of the REST gateway: its keys (unless `keys` are given), rate limiter and audit log;
    `helpers` (metrics, cache, sessions, watches of drift) and `orders` are the REST interface's too.
    """

    def __init__(
        self,
        service: Service,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keys: Keys | None = None,
        tls: Certificate | None = None,
        limits: RpcLimits | None = None,
        guard: Guard | None = None,
        helpers: Helpers | None = None,
        speech: Streams | None = None,
        orders: Orders | None = None,
    ) -> None:
        require("grpc", "serve")
        self._service = service
        self._helpers = helpers or Helpers(PlainMetrics(service))
        self._orders = orders or Orders(service)
        self._host = host
        self._tls = tls
        self.limits = limits or RpcLimits()
        self.port = port
        """Where it listens; with port 0 known from the start on."""
        self._gate = Gate(
            keys=keys if keys is not None or guard is None else guard.keys,
            limiter=None if guard is None else guard.limiter,
            audit=None if guard is None else guard.audit,
            metrics=None if helpers is None else helpers.metrics,
            max_calls=self.limits.max_calls,
            retry_after=service.retry_after,
        )
        self._health = Health(service)
        self._speech = SpeechRecognition(speech or Streams(service))
        self._methods = self._handlers()
        self._server: Any = None
        self._follower: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Future[float] | None = None

    def __enter__(self) -> Self:
        """Listen, on a thread with its own event loop. Raises ConfigError for an address that can't be used."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="deepseek-rpc", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the thread that `with` started, as `stop` does."""
        if self._thread is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop ended already
            self._loop.call_soon_threadsafe(self._end, drain_seconds)
        self._thread.join()

    async def start(self) -> None:
        """Listen, on the running event loop. Raises ConfigError for an address that can't be used."""
        import grpc  # type: ignore[import-untyped]

        self._server = grpc.aio.server(options=self._options())
        self._server.add_generic_rpc_handlers((self._handler(),))  # grpcio waits on every registered method by itself
        address = f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError as error:
            raise ConfigError(
                f"{address} can't be used for gRPC",
                found=str(error).partition(";")[0],
                fix="stop what listens there, or choose another address or port (--grpc_port 0 takes a free one)",
            ) from None
        await self._health.refresh()
        await self._server.start()
        self._follower = asyncio.create_task(self._health.follow())

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new calls, let running ones finish for `drain_seconds`, fail the rest with UNAVAILABLE, and end."""
        if self._follower is not None:
            self._follower.cancel()
        await self._health.leave()
        await asyncio.sleep(_TELL_SECONDS)
        ending = asyncio.create_task(self._server.stop(drain_seconds + 10.0))
        await self._gate.drain(drain_seconds)
        await ending

    def _run(self, started: Future[None]) -> None:
        """Serve on an event loop of this thread; uvloop, where it is installed, takes less time a call."""
        new_loop = importlib.import_module("uvloop").new_event_loop if importlib.util.find_spec("uvloop") else None
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = self._loop.create_future()
        try:
            await self.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self.stop(await self._stop)

    def _end(self, drain_seconds: float) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(drain_seconds)

    def _options(self) -> list[tuple[str, int]]:
        limits = self.limits
        return [
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
            ("grpc.max_concurrent_streams", limits.max_calls_per_connection),
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", int(limits.ping_seconds * 1000)),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.so_reuseport", int(limits.reuse_port)),
        ]

    def _handlers(self) -> dict[str, Any]:
        """Return the handlers of all methods by path."""
        gate, limits = self._gate, self.limits
        generation = Generation(self._service, self._helpers)
        inference = Inference(
            self._service,
            generation,
            self._helpers,
            gate,
            self._orders,
            idle_seconds=limits.idle_seconds,
            allow_admin=limits.allow_admin,
        )
        unary = {
            "ServerLive": inference.server_live,
            "ServerReady": inference.server_ready,
            "ModelReady": inference.model_ready,
            "ServerMetadata": inference.server_metadata,
            "ModelMetadata": inference.model_metadata,
            "ModelInfer": inference.model_infer,
            "RepositoryIndex": inference.repository_index,
            "RepositoryModelLoad": inference.repository_load,
            "RepositoryModelUnload": inference.repository_unload,
        }
        methods = {
            f"/{INFERENCE}/{name}": gate.unary(f"{INFERENCE}/{name}", method, is_open=name in _OPEN)
            for name, method in unary.items()
        }
        stream, generate = f"{INFERENCE}/ModelStreamInfer", f"{GENERATION}/Generate"
        methods[f"/{stream}"] = gate.both_stream(stream, inference.model_stream_infer)
        methods[f"/{generate}"] = gate.server_stream(generate, generation.generate)
        methods.update(self._speech.handlers(gate))
        methods.update(self._health.handlers(gate))
        methods.update(reflection_handlers(gate, limits.idle_seconds))
        return methods

    def _handler(self) -> Any:
        import grpc

        methods, gate = self._methods, self._gate

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            """Finds the method of a call; one that is not known is refused like any other call."""

            def service(self, handler_call_details: Any) -> Any:
                path = handler_call_details.method
                return methods.get(path) or gate.both_stream("other", _unknown(path, methods))

        return Handler()


def _unknown(path: str, methods: Mapping[str, Any]) -> BothStream:
    async def refuse(messages: AsyncIterator[bytes], call: Call, write: Write) -> None:
        near = " or ".join(nearest(path[:96], methods))
        fix = f"did you mean {near}?" if near else f"the services are {', '.join(sorted(_services(methods)))}"
        raise RequestError(f"there is no method {ascii(path[:96])}", status=501, fix=fix)

    return refuse


def _services(methods: Mapping[str, Any]) -> set[str]:
    return {path.split("/")[1] for path in methods}


def _credentials(tls: Certificate) -> Any:
    """Return credentials that look at the files again at each handshake, so that a renewed certificate is taken up."""
    import grpc

    def configuration() -> Any:
        return grpc.ssl_server_certificate_configuration([tls.pem()])

    current = tls.pem()

    def fetch() -> Any:
        nonlocal current
        try:
            found = tls.pem()
        except OSError as error:
            _LOG.error("the certificate stays as it was: %s", error)
            return None
        if found == current:
            return None
        current = found
        return grpc.ssl_server_certificate_configuration([found])

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch)
