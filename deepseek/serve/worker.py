"""One of several processes that serve on the same port, and its line to the supervisor.

The line is a pair of sockets that carry one JSON object a line. The supervisor's first says what to serve; later ones
tell how often workers were restarted, and what clients ordered (see `orders`). The worker's say that it is ready (and
where it listens), that it could not load, and, every second out of its event loop, that it lives. When the line breaks
the supervisor is gone, and the worker drains and ends. Not here: starting and replacing workers (see `supervisor`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import socket
import sys
from collections.abc import Mapping
from typing import Any

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.errands import Errands
from deepseek.serve.heap import SteadyHeap
from deepseek.serve.monitoring.board import Board
from deepseek.serve.options import Models, ServerOptions
from deepseek.serve.seat import Place, Seat
from deepseek.serve.security.rates import SharedRates
from deepseek.serve.shared_file import SharedFile

_LOG = logging.getLogger("deepseek.serve")
BEAT_SECONDS = 1.0


class Line:
    """One end of the line between supervisor and worker; lines are read as they come, without waiting."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._rest = b""

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send a message; return whether the other side is still there."""
        try:
            self.end.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def read(self) -> list[dict[str, Any]] | None:
        """Return the messages that are here (waits for something to come on a blocking end), None at the end."""
        try:
            data = self.end.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Worker:
    """This process as a worker."""

    def __init__(self) -> None:
        self._place = Place.from_environment()
        self._line = Line(socket.socket(fileno=self._place.line))
        self._listener = socket.socket(fileno=self._place.listener)
        self._facts: dict[str, Any] = {}
        self._errands = Errands(self._line.send)
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, models: Models | None = None) -> int:
        """Load the libraries, then serve what the supervisor says (or `models`) until told to end.

        Returns the exit code.
        """
        _load_libraries()
        messages = self._first_messages()
        if not messages:
            return 1
        wish, *later = messages
        self._facts = {"worker": wish["number"], "workers": wish["workers"], "restarts": wish["restarts"]}
        self._past = wish["orders"]
        for message in later:
            self._facts |= message
        options = ServerOptions.model_validate_json(json.dumps(wish["options"]))
        try:
            return self._serve(models or wish["models"], options)
        except DeepSeekError as error:
            self._line.send({"failed": str(error), "config": isinstance(error, ConfigError)})
            return 2 if isinstance(error, ConfigError) else 1

    def _first_messages(self) -> list[dict[str, Any]] | None:
        """Wait for the supervisor; None where it is gone."""
        messages: list[dict[str, Any]] | None = []
        while messages is not None and not messages:
            messages = self._line.read()
        return messages

    def _seat(self) -> Seat:
        number = self._facts["worker"]
        board, rates = Board(SharedFile(self._place.board)), SharedRates(SharedFile(self._place.rates), number)
        return Seat(number, self._listener, lambda: self._facts, board, rates, self._errands.pass_on)

    def _serve(self, models: Models, options: ServerOptions) -> int:
        from deepseek.serve.running import Running

        running = self._running = Running(models, options, self._seat())
        with contextlib.ExitStack() as heap:

            def checked(problem: DeepSeekError | None) -> None:
                if problem is not None:
                    running.problem = problem
                    running.server.should_exit = True
                    return
                heap.enter_context(SteadyHeap(running.service))
                self._tasks.append(asyncio.get_running_loop().create_task(self._get_ready()))

            running.run(checked, beside=self._begin)
        if running.problem is not None:
            raise running.problem
        return 0

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._line.end.setblocking(False)
        self._errands.begin()
        loop.add_reader(self._line.end, self._hear)
        self._tasks.append(loop.create_task(self._beat()))

    async def _get_ready(self) -> None:
        """Do what clients ordered before, and tell the supervisor that this worker serves."""
        await self._errands.catch_up(self._running.service, self._past)
        self._line.send({"ready": self._running.listening._asdict()})

    def _hear(self) -> None:
        """Take what the supervisor says."""
        messages = self._line.read()
        if messages is None:
            self._end()
            return
        for message in messages:
            if "restarts" in message:
                self._facts = {**self._facts, **message}
            else:
                self._errands.hear(message, self._running.service)

    async def _beat(self) -> None:
        """Tell the supervisor that the event loop turns, and the other workers what this one has counted."""
        while self._line.send({"beat": True}):
            self._running.metrics.publish()
            await asyncio.sleep(BEAT_SECONDS)
        self._end()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line.end)
        self._errands.close()
        if not self._running.server.should_exit:
            _LOG.error("the supervisor is gone: this worker ends")
        self._running.server.should_exit = True


def _load_libraries() -> None:
    """Import what serving needs, so that a process that stands by can begin at once."""
    import uvicorn.lifespan.on
    import uvicorn.protocols.http.httptools_impl  # noqa: F401

    import deepseek.serve.running
    from deepseek.serve import hosted, tensor  # noqa: F401

    if importlib.util.find_spec("grpc") is not None:
        import deepseek.serve.rpc.server  # noqa: F401


def main() -> None:
    """Run as a worker of `deepseek serve --workers N`."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(process)d %(message)s")
    sys.exit(Worker().run())
