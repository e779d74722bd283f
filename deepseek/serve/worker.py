"""One of several processes that serve on the same port, and its line to the supervisor.

The line is a pair of sockets that carry one JSON object a line. The supervisor's first says what to serve; later ones
tell how often workers were restarted. The worker's say that it is ready (and where it listens), that it could not
load, and, every second out of its event loop, that it lives. When the line breaks the supervisor is gone, and the
worker drains and ends. Not here: starting and replacing workers (see `supervisor`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.options import Models, ServerOptions

_LOG = logging.getLogger("deepseek.serve")
PLACE = "DEEPSEEK_WORKER"
"""Environment variable that tells a worker its file descriptors."""
BEAT_SECONDS = 1.0


class Place(NamedTuple):
    """The descriptors that a worker has inherited."""

    listener: int
    line: int

    def to_text(self) -> str:
        """Return it for the environment."""
        return json.dumps(self._asdict())

    @classmethod
    def from_environment(cls) -> Place:
        """Return this process's. Raises ConfigError where no supervisor started it."""
        text = os.environ.pop(PLACE, "")
        if not text:
            raise ConfigError("this process is no worker of a supervisor", fix="deepseek serve --workers 2 BUNDLE")
        return cls(**json.loads(text))


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
        self._beating: asyncio.Task[None] | None = None

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

    def _serve(self, models: Models, options: ServerOptions) -> int:
        from deepseek.serve.running import Running

        running = self._running = Running(
            models, options, bound=self._listener, worker=self._facts["worker"], facts=lambda: self._facts
        )

        def checked(problem: DeepSeekError | None) -> None:
            if problem is not None:
                running.problem = problem
                running.server.should_exit = True
            else:
                self._line.send({"ready": running.listening._asdict()})

        running.run(checked, beside=self._begin_beating)
        if running.problem is not None:
            raise running.problem
        return 0

    def _begin_beating(self) -> None:
        self._line.end.setblocking(False)
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        """Tell the supervisor that the event loop turns, and hear what it says."""
        while True:
            messages = self._line.read()
            for message in messages or ():
                self._facts = {**self._facts, **message}
            if messages is None or not self._line.send({"beat": True}):
                _LOG.error("the supervisor is gone: this worker ends")
                self._running.server.should_exit = True
                return
            await asyncio.sleep(BEAT_SECONDS)


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
