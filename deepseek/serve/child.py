"""A worker's process as the supervisor sees it: started, told what to serve, heard, ended.

Not here: when that is done (see `supervisor`), and what the process does (see `worker`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepseek.serve.seat import PLACE, Place, Shared
from deepseek.serve.worker import Line


class Child:
    """A started process. It loads its libraries at once, and its models when it is told which."""

    def __init__(self, command: Sequence[str], listener: socket.socket, shared: Shared) -> None:
        self._line: Line | None
        ours, theirs = socket.socketpair()
        board, rates = shared.board.file.descriptor, shared.rates.file.descriptor
        place = Place(listener.fileno(), theirs.fileno(), board, rates)
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
        self.process = subprocess.Popen(
            command,
            pass_fds=place,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal reaches the supervisor only, which then lets the workers drain
            env={**os.environ, "PYTHONPATH": path, PLACE: place.to_text()},
        )
        theirs.close()
        self._line = Line(ours)
        self.ready: Mapping[str, Any] | None = None
        """Where it listens, once it is ready."""
        self.said: Mapping[str, Any] | None = None
        """Why it could not load, in its own words."""
        self.heard_orders: list[dict[str, Any]] = []
        """What it has said of clients' orders (see `orders.OrderBook`)."""
        self.orders: Sequence[Sequence[Any]] | None = ()
        """What was ordered before its start, which it was told then."""
        self.since = self.heard = time.monotonic()

    def begin(self, wish: Mapping[str, Any]) -> None:
        """Tell it what to serve."""
        self.since = self.heard = time.monotonic()
        self.orders = wish["orders"]
        self.send(wish)
        if self._line is not None:
            self._line.end.setblocking(False)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one that is gone is found out by `code`."""
        if self._line is not None:
            self._line.send(message)

    def hear(self) -> None:
        """Take what it has said since."""
        messages = self._line.read() if self._line is not None else None
        if messages is None:
            self._hang_up()
            return
        for message in messages:
            self.heard = time.monotonic()
            self.ready = message.get("ready", self.ready)
            self.said = message if "failed" in message else self.said
            if "ask" in message or "did" in message:
                self.heard_orders.append(message)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    @property
    def end_in_words(self) -> str:
        """How it ended."""
        if self.said is not None:
            return str(self.said["failed"])
        code = self.code or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.code is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """Wait for its end for that long, then kill it; nothing is left of it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.end.close()
            self._line = None
