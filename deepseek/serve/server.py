"""Running the server: sockets, signals, start and end; in the foreground (`serve`) or beside a program.

Not here: routes (see `rest`) and the command line (see `deepseek.cli.serve`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import Field

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.lazy import require
from deepseek.serve.folder import name_bundles
from deepseek.serve.rest.app import create_app
from deepseek.serve.rest.gateway import hosts_for, is_loopback
from deepseek.serve.rest.protocol import limited_protocol
from deepseek.serve.service import Service
from deepseek.serve.text.engine import EngineLimits
from deepseek.serve.text.models import TextModel

if TYPE_CHECKING:
    import uvicorn

_LOG = logging.getLogger("deepseek.serve")

Models = Sequence[str | Path] | Mapping[str, str | Path] | Mapping[str, TextModel]
"""Bundles (named after their folders), names with bundles, or names with models in memory."""


_FIXES = {
    errno.EADDRINUSE: "stop what listens there, or choose another port (--port 0 takes a free one)",
    errno.EACCES: "choose a port above 1023",
    errno.EADDRNOTAVAIL: "choose an address of this machine, such as 127.0.0.1",
}


class ServerLimits(EngineLimits):
    """How much a server takes on."""

    drain_seconds: float = Field(20.0, ge=0, le=3600)
    """After SIGTERM, how long running requests may go on before they get 503."""
    max_connections: int = Field(512, ge=1, le=65536)
    """Open connections; one more gets 503."""


def serve(
    models: Models,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    device: str = "auto",
    api_key: str | None = None,
    allowed_hosts: Collection[str] = (),
    limits: ServerLimits | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for `limits.drain_seconds`.

    `on_ready` is called with the URL once every model answered its golden samples. Port 0 takes a free one.
    Raises ConfigError for an address that can't be used, BundleError for a bundle that can't be served.
    """
    running = _Running(models, host, port, device=device, api_key=api_key, allowed_hosts=allowed_hosts, limits=limits)

    def checked(problem: DeepSeekError | None) -> None:
        if problem is not None:
            running.problem = problem
            running.server.should_exit = True
        elif on_ready is not None:
            on_ready(running.url)

    running.run(checked)
    if running.problem is not None:
        raise running.problem


class BackgroundServer:
    """A server in a thread of this process, for as long as the `with` block lasts.

    with BackgroundServer(["runs/quickstart/bundle"]) as server:
        httpx.post(server.url + "/v1/completions", json={"prompt": "Once"})

    Entering waits until every model is ready. Raises what `serve` raises.
    """

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        device: str = "auto",
        api_key: str | None = None,
        allowed_hosts: Collection[str] = (),
        limits: ServerLimits | None = None,
    ) -> None:
        self._running = _Running(
            models, host, port, device=device, api_key=api_key, allowed_hosts=allowed_hosts, limits=limits
        )
        self._checked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deepseek-server", daemon=True)

    @property
    def url(self) -> str:
        """Where the server listens, without a slash at the end."""
        return self._running.url

    @property
    def service(self) -> Service:
        """The models that are served."""
        return self._running.service

    def __enter__(self) -> Self:
        self._thread.start()
        self._checked.wait()
        if self._running.problem is not None:
            self.close()
            raise self._running.problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; running requests may finish for `limits.drain_seconds`."""
        self._running.server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._running.run(self._on_checked)
        except DeepSeekError as error:
            self._running.problem = error
        except Exception as error:
            self._running.problem = ConfigError("the server could not start", found=repr(error))
            self._running.problem.__cause__ = error
        finally:
            self._checked.set()

    def _on_checked(self, problem: DeepSeekError | None) -> None:
        self._running.problem = problem
        self._checked.set()


class _Running:
    """A bound socket, loaded models, and uvicorn around them. The socket comes first: it fails fast."""

    def __init__(
        self,
        models: Models,
        host: str,
        port: int,
        *,
        device: str,
        api_key: str | None,
        allowed_hosts: Collection[str],
        limits: ServerLimits | None,
    ) -> None:
        require("uvicorn", "serve")
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigError("the API key can't be sent in a header", wanted="printable ASCII without spaces")
        self.problem: DeepSeekError | None = None
        self.limits = limits or ServerLimits()
        self._socket = _bind(host, port)
        try:
            self.service = Service(_load(models, device), self.limits)
        except BaseException:
            self._socket.close()
            raise
        self._host, self._port = host, self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"
        self._hosts = hosts_for(host, allowed_hosts)
        self._api_key = api_key
        self.server: uvicorn.Server = self._build()
        if api_key is None and not is_loopback(host):
            _LOG.warning("everyone who can reach %s may use it: set an API key (--api-key)", self.url)

    def run(self, on_checked: Callable[[DeepSeekError | None], None]) -> None:
        """Run until told to exit."""
        self._on_checked = on_checked
        try:
            self.server.run(sockets=[self._socket])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _address_error(self._host, self._port, error) from error  # another server was quicker to listen
        finally:
            self._socket.close()

    def _build(self) -> uvicorn.Server:
        import uvicorn

        app = create_app(
            self.service,
            api_key=self._api_key,
            hosts=self._hosts,
            on_checked=lambda problem: self._on_checked(problem),
        )
        config = uvicorn.Config(
            app,
            http=limited_protocol(),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=self.limits.max_connections,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=int(self.limits.drain_seconds) + 5,
        )
        return _server_class()(config, self.service, self.limits.drain_seconds)


def _server_class() -> Callable[[uvicorn.Config, Service, float], uvicorn.Server]:
    import uvicorn

    class DrainingServer(uvicorn.Server):
        """Drains for its own time, ends with exit code 0 on SIGTERM, and at once on a second signal."""

        def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
            super().__init__(config)
            self._service = service
            self._drain_seconds = drain_seconds

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            import asyncio

            self._service.stopping = True
            deadline = asyncio.get_running_loop().call_later(self._drain_seconds, self._service.abort)
            try:
                await super().shutdown(sockets)
            finally:
                deadline.cancel()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True
            if self.force_exit:
                self._service.abort()

    return DrainingServer


def _load(models: Models, device: str) -> Mapping[str, TextModel]:
    from deepseek.serve.text.models import BundleModel

    named = models if isinstance(models, Mapping) else name_bundles(models)
    if not named:
        raise ConfigError("no bundle to serve", wanted="at least one", fix="deepseek serve BUNDLE")
    loaded: dict[str, TextModel] = {}
    for name, model in named.items():
        loaded[name] = BundleModel.load(model, device) if isinstance(model, str | Path) else model
    return loaded


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address. Raises ConfigError that says what to do."""
    if not 0 <= port <= 65535:
        raise ConfigError("no such port", found=port, wanted="0 to 65535 (0 takes a free one)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host '{host}' can't be found", found=error, fix="use 127.0.0.1 or 0.0.0.0") from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _address_error(host, port, error) from error
    return bound


def _address_error(host: str, port: int, error: OSError) -> ConfigError:
    reason = "is in use" if error.errno == errno.EADDRINUSE else "can't be used"
    fix = _FIXES.get(error.errno or 0, "choose another port")
    return ConfigError(f"port {port} on {host} {reason}", found=error.strerror, fix=fix)
