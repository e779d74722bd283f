"""What a worker process has of the others: the socket they all accept on, and memory they all see.

Not here: the line to the supervisor (see `worker`), starting workers (see `supervisor`).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from deepseek.errors import ConfigError
from deepseek.serve.monitoring.board import Board
from deepseek.serve.orders import Order
from deepseek.serve.security.rates import SharedRates

PLACE = "DEEPSEEK_WORKER"
"""Environment variable that tells a worker its file descriptors."""


class Shared:
    """Memory of a supervisor and its workers."""

    def __init__(self, places: int) -> None:
        self.board = Board.make(places)
        self.rates = SharedRates.make(places)

    def close(self) -> None:
        """Let it go, in this process."""
        self.board.file.close()
        self.rates.file.close()


class Place(NamedTuple):
    """The descriptors that a worker has inherited."""

    listener: int
    line: int
    board: int
    rates: int

    def to_text(self) -> str:
        """Return it for the environment."""
        return json.dumps(self._asdict())

    @classmethod
    def from_environment(cls) -> Self:
        """Return this process's. Raises ConfigError where no supervisor started it."""
        text = os.environ.pop(PLACE, "")
        if not text:
            raise ConfigError("this process is no worker of a supervisor", fix="deepseek serve --workers 2 BUNDLE")
        return cls(**json.loads(text))


class Seat(NamedTuple):
    """One worker among the others."""

    number: int
    listener: socket.socket
    facts: Callable[[], dict[str, Any]]
    """Which worker this is, how many there are and how often they were restarted."""
    board: Board
    rates: SharedRates
    pass_on: Callable[[Order, str], None]
    """Has an order of a client (and the request's id) carried out by all."""
