"""uvicorn's server with our order of ending, and what signals mean to it. Not here: what is served (see `running`)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from deepseek.errors import DeepSeekError

if TYPE_CHECKING:
    import uvicorn

    from deepseek.serve.options import ServerOptions
    from deepseek.serve.service import Service


class Served(Protocol):
    """What the server starts and ends beside HTTP (see `running`)."""

    service: Service
    options: ServerOptions
    problem: DeepSeekError | None

    async def start_beside(self) -> None:
        """Start it; called in the event loop once the sockets listen."""
        ...

    async def drain_beside(self) -> None:
        """Let what runs end."""
        ...

    async def close_beside(self) -> None:
        """Let go what the last request may have needed."""
        ...

    def reload(self) -> None:
        """Read again what may have changed."""
        ...


def draining_server(config: uvicorn.Config, running: Served) -> uvicorn.Server:
    """Return a server of uvicorn that starts and ends what `running` has beside it."""
    import uvicorn

    class DrainingServer(uvicorn.Server):
        """Drains for its own time, ends with exit code 0 on SIGTERM, and at once on a second signal."""

        def __init__(self, config: uvicorn.Config, running: Served) -> None:
            super().__init__(config)
            self._running = running
            self._loop: asyncio.AbstractEventLoop | None = None
            self._reloading: asyncio.Future[None] | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().startup(sockets)
            try:
                await self._running.start_beside()
            except DeepSeekError as error:
                self._running.problem = error
                self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service, limits = self._running.service, self._running.options.limits
            service.stopping = True
            deadline = asyncio.get_running_loop().call_later(limits.drain_seconds, service.abort)
            drained = asyncio.create_task(self._running.drain_beside())
            close = self.lifespan.shutdown

            async def close_after_both() -> None:
                await drained
                await close()
                await self._running.close_beside()

            self.lifespan.shutdown = close_after_both
            try:
                await super().shutdown(sockets)
                if self.force_exit:
                    drained.cancel()
            finally:
                deadline.cancel()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            handlers: dict[int, Callable[[int, FrameType | None], None]] = {
                signal.SIGINT: self.handle_exit,
                signal.SIGTERM: self.handle_exit,
            }
            if hasattr(signal, "SIGHUP"):
                handlers[signal.SIGHUP] = self.handle_reload
            before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True
            if self.force_exit:
                self._running.service.abort()

        def handle_reload(self, sig: int, frame: FrameType | None) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._reload)

        def _reload(self) -> None:
            if self._reloading is None or self._reloading.done():
                self._reloading = asyncio.ensure_future(asyncio.to_thread(self._running.reload))

    return DrainingServer(config, running)
