"""One process that serves: bound sockets, loaded models, HTTP and gRPC around them, one order of ending.

The order: not ready any more (new requests get 503) -> running requests of both protocols end, for `drain_seconds` ->
what is left fails with 503 -> engines and files are closed. Not here: several processes (see `supervisor`).
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.errors import BundleError, ConfigError, DeepSeekError
from deepseek.lazy import require
from deepseek.serve.draining import draining_server
from deepseek.serve.folder import name_bundles
from deepseek.serve.monitoring.collect import Sources
from deepseek.serve.monitoring.metrics import build_metrics
from deepseek.serve.monitoring.together import Together
from deepseek.serve.monitoring.tracing import Tracing
from deepseek.serve.monitoring.watch import Watches
from deepseek.serve.options import Models, ServerOptions
from deepseek.serve.orders import Orders
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.app import create_app
from deepseek.serve.rest.door import Guard
from deepseek.serve.rest.paths import route_of
from deepseek.serve.rest.protocol import limited_protocol
from deepseek.serve.service import Service
from deepseek.serve.sockets import address_error, address_of, bind, url_of
from deepseek.serve.speech.session import Streams
from deepseek.serve.state.options import build_state
from deepseek.serve.watch import FolderWatcher

if TYPE_CHECKING:
    import uvicorn

    from deepseek.serve.rpc.server import RpcServer
    from deepseek.serve.seat import Seat

_LOG = logging.getLogger("deepseek.serve")
_LOOK_SECONDS = 2.0
"""How often the file of keys is looked at."""


class Listening(NamedTuple):
    """Where a server answers, once it is ready."""

    url: str
    """Of REST and of the page, without a slash at the end."""
    grpc: str | None
    """`host:port` of gRPC."""
    models: tuple[str, ...]
    protection: str
    """In a few words: keys, TLS, rates."""

    def __str__(self) -> str:
        also = f", gRPC at {self.grpc}" if self.grpc else ""
        return f"serving {', '.join(self.models)} at {self.url} (REST, page at /){also}; {self.protection}"


class Running:
    """The socket comes first: it fails fast. Then keys and certificate are checked, then models are loaded."""

    def __init__(self, models: Models, options: ServerOptions, seat: Seat | None = None) -> None:
        """`seat`: this worker among others that serve the same."""
        require("uvicorn", "serve")
        self.problem: DeepSeekError | None = None
        self.options = options
        safety = options.safety
        named = _named(models)
        self._in_memory = {name for name, model in named.items() if not isinstance(model, str | Path)}
        self.tls = safety.tls()
        self._socket = bind(options.host, options.port) if seat is None else seat.listener
        self._rpc: RpcServer | None = None
        guard: Guard | None = None
        try:
            guard = safety.guard(options.host, seat)
            self.service = Service(
                named,
                options.limits,
                tensor_limits=options.tensor_limits,
                device=options.device,
                folder=options.folder,
            )
            self._state = build_state(options.state)
            self._tracing = None if options.tracing is None else Tracing(options.tracing)
        except BaseException:
            self._socket.close()
            if guard is not None and guard.audit is not None:
                guard.audit.close()
            raise
        self.guard = guard
        self._watches = Watches()
        self._streams = Streams(self.service, options.stream_limits)
        cache, sessions = self._state.cache, self._state.sessions
        self.metrics = build_metrics(
            self.service,
            Sources(
                None if cache is None else cache.stats,
                None if sessions is None else sessions.stats,
                self._watches,
                self._streams.stats,
                guard.facts,
                guard.limiter,
            ),
            None if seat is None else Together(seat.board, seat.number),
        )
        self._orders = Orders(self.service, None if seat is None else seat.pass_on)
        self._watcher = FolderWatcher(self.service, options.folder) if options.watch and options.folder else None
        self._shared = seat is not None
        self._port = self._socket.getsockname()[1]
        self.url = url_of(options.host, self._port, tls=self.tls is not None)
        self.server: uvicorn.Server = self._build()
        if guard.keys is None and safety.insecure:
            _LOG.warning("INSECURE: everyone who can reach %s may use every model, without a key", self.url)
        if guard.keys is not None and self.tls is None and guard.hosts is None:
            _LOG.warning("keys cross the network in the clear: give --tls-cert and --tls-key, or put TLS in front")

    @property
    def listening(self) -> Listening:
        """Where the server answers and what protects it."""
        names = tuple(sorted(self.service.hosted))
        grpc = None if self._rpc is None else address_of(self.options.host, self._rpc.port)
        return Listening(self.url, grpc, names, self.options.safety.told(self.options.host, self.guard.keys))

    def run(self, on_checked: Callable[[DeepSeekError | None], None], beside: Callable[[], None] | None = None) -> None:
        """Run until told to exit. `beside` is called in the event loop once the sockets listen."""
        self._on_checked, self._beside = on_checked, beside
        try:
            self.server.run(sockets=[self._socket])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise address_error(self.options.host, self._port, error) from error  # another was quicker to listen
        finally:
            self._socket.close()
            if self.guard.audit is not None:
                self.guard.audit.close()

    async def start_beside(self) -> None:
        """Start gRPC, which shares the models, and watching; called in the event loop."""
        await self._state.start()
        if self.options.grpc_port is not None:
            rpc = self._build_rpc(self.options.grpc_port)
            await rpc.start()
            self._rpc = rpc
        if self._watcher is not None:
            self._watcher.start()
        if self._beside is not None:
            self._beside()

    async def drain_beside(self) -> None:
        """End gRPC, whose running requests may finish, and watching."""
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.close)
        if self._rpc is not None:
            await self._rpc.stop(self.options.limits.drain_seconds)

    async def close_beside(self) -> None:
        """Let Redis and the collector of traces go, once the last request is answered."""
        await self._state.close()
        await asyncio.to_thread(self._watches.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def look(self) -> None:
        """Read the keys again where their file changed."""
        if self.guard.keys is not None:
            self.guard.keys.refresh()

    def reload(self) -> None:
        """Read keys, certificate and bundles again (SIGHUP). What fails is logged, and the old one stays."""
        if self.guard.keys is not None:
            self.guard.keys.refresh(force=True)
        context = self.server.config.ssl
        if self.tls is not None and context is not None:
            try:
                self.tls.check()
                self.tls.load_into(context)
            except ConfigError as error:
                _LOG.error("the certificate stays as it was: %s", error)
        for name in set(self.service.hosted) - self._in_memory:
            try:
                self.service.reload(name)
            except DeepSeekError as error:
                _LOG.error("the model '%s' stays as it was: %s", name, error)

    def _build(self) -> uvicorn.Server:
        import uvicorn

        limits = self.options.limits
        app = create_app(
            self.service,
            guard=self.guard,
            cache=self._state.cache,
            sessions=self._state.sessions,
            speech=self._streams,
            metrics=self.metrics,
            watches=self._watches,
            allow_admin=self.options.allow_admin,
            orders=self._orders,
            on_checked=lambda problem: self._on_checked(problem),
        )
        if self._tracing is not None:
            app = self._tracing.wrap(app, route_of)
        config = uvicorn.Config(
            app,
            http=limited_protocol(limits.max_connections),
            ws=_websockets(),
            ws_max_size=1 << 20,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=int(limits.drain_seconds) + 5,
            callback_notify=self.look,
            timeout_notify=int(_LOOK_SECONDS),
        )
        config.load()
        config.ssl = None if self.tls is None else self.tls.context()
        return draining_server(config, self)

    def _build_rpc(self, port: int) -> RpcServer:
        from deepseek.serve.rpc.server import RpcLimits, RpcServer

        options = self.options
        limits = RpcLimits(
            max_connections=options.limits.max_connections,
            allow_admin=options.allow_admin,
            reuse_port=self._shared,
        )
        return RpcServer(
            self.service,
            options.host,
            port,
            tls=self.tls,
            limits=limits,
            guard=self.guard,
            speech=self._streams,
            orders=self._orders,
            helpers=Helpers(self.metrics, self._state.cache, self._state.sessions, self._watches),
        )


def _named(models: Models) -> Mapping[str, Any]:
    """Return models by name; what is not there is told now, not when it is opened."""
    named = models if isinstance(models, Mapping) else name_bundles(models)
    if not named:
        raise ConfigError("no bundle to serve", wanted="at least one", fix="deepseek serve BUNDLE")
    for model in named.values():
        if isinstance(model, str | Path) and not Path(model).exists():
            raise BundleError(f"{model} does not exist", wanted="a bundle", fix="check the path")
    return named


def _websockets() -> Any:
    """Return which implementation of websockets is here: `websockets` without its own loop, else wsproto, else none."""
    for package, name in (("websockets", "websockets-sansio"), ("wsproto", "wsproto")):
        if importlib.util.find_spec(package) is not None:
            return name
    return "none"
