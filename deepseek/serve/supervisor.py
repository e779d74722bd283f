"""A parent that keeps worker processes serving on one port: restarts those that die, replaces those that hang.

The parent binds the sockets and never touches a request; workers accept on the shared socket, so while one is away the
others answer, and connections that come meanwhile wait in the socket's queue. Workers are started afresh (not forked:
torch's threads and locks don't survive a fork). A spare process with its libraries loaded stands by, so that a dead
worker's place is taken as fast as the models load. A worker that dies after it was ready is replaced at once, then
after 0.5, 1, 2 and at most 4 s while it keeps dying within a minute. A model that can't be loaded, or workers that die
again and again while they load, end the whole with that error. What workers count and what clients may still ask lies
in memory that all of them share. Not here: what a worker does (see `worker`), and clients' orders (see `orders`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from deepseek.errors import BundleError, ConfigError, DeepSeekError
from deepseek.serve.child import Child
from deepseek.serve.monitoring.together import fold
from deepseek.serve.options import ServerOptions
from deepseek.serve.orders import OrderBook
from deepseek.serve.running import Listening
from deepseek.serve.seat import Shared
from deepseek.serve.sockets import bind, reserve

_LOG = logging.getLogger("deepseek.serve")
_COMMAND = (sys.executable, "-P", "-c", "from deepseek.serve.worker import main; main()")
_LOADS = 3
"""Loads that may fail in a row before the supervisor gives up."""
_STEADY_SECONDS = 60.0
_LONGEST_PAUSE = 4.0
_TURN_SECONDS = 0.05


class SupervisorError(DeepSeekError):
    """Workers die again and again before they are ready."""


class _Post:
    """A worker's place: who is in it, and how those before fared."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.due = 0.0
        self.deaths = 0
        """Deaths in a row, each within a minute of the start."""
        self.failed_loads = 0


class Supervisor:
    """Workers on sockets that are bound already."""

    def __init__(
        self,
        wish: Mapping[str, Any],
        listener: socket.socket,
        workers: int,
        *,
        command: Sequence[str] = _COMMAND,
        spare: bool = True,
        hang_seconds: float = 15.0,
        load_seconds: float = 900.0,
        drain_seconds: float = 20.0,
    ) -> None:
        """Take what to tell the workers (`models`, `options`), and the socket they accept on.

        A worker whose event loop stands still for `hang_seconds`, or that is not ready after `load_seconds`, is killed
        and replaced. `spare`: keep a process standing by (the memory of the libraries, without models).
        """
        self.restarts = 0
        self._wish = {**wish, "workers": workers}
        self._listener = listener
        self._command = tuple(command)
        self._wants_spare = spare
        self._spare: Child | None = None
        self._hang_seconds, self._load_seconds, self._drain_seconds = hang_seconds, load_seconds, drain_seconds
        self._posts = [_Post(number) for number in range(workers)]
        self._shared = Shared(workers)
        self._book = OrderBook()
        self._signals: list[int] = []
        self._stopping = False
        self._kill_at = float("inf")
        self._listening: Listening | None = None

    @property
    def all_ready(self) -> bool:
        """Whether every worker is in its place and ready."""
        return all(post.child is not None and post.child.ready is not None for post in self._posts)

    def stop(self) -> None:
        """End as on SIGTERM; may be called from another thread."""
        self._signals.append(signal.SIGTERM)

    def pids(self) -> list[int | None]:
        """Return the workers' process ids; None for one that is away."""
        return [None if post.child is None else post.child.process.pid for post in self._posts]

    def run(self, on_ready: Callable[[Listening], None] | None = None) -> None:
        """Keep the workers running until SIGTERM or Ctrl-C; `on_ready` is called once all are ready.

        Raises ConfigError or BundleError that a worker met while it loaded, SupervisorError for one that dies each
        time before it is ready.
        """
        with self._handling_signals():
            try:
                while not (self._stopping and all(post.child is None for post in self._posts)):
                    self._turn(on_ready)
                    time.sleep(_TURN_SECONDS)
            finally:
                self._end_all()
                self._shared.close()

    def _turn(self, on_ready: Callable[[Listening], None] | None) -> None:
        """Look after everyone once."""
        while self._signals:
            self._on_signal(self._signals.pop(0))
        now = time.monotonic()
        for post in self._posts:
            if post.child is None:
                if not self._stopping and now >= post.due:
                    self._fill(post)
                continue
            code = post.child.code  # first the end, then the last words
            post.child.hear()
            if code is not None:
                self._on_death(post, post.child, now)
            else:
                self._check(post, post.child, now)
        self._book.turn([post.child for post in self._posts if post.child is not None and post.child.ready is not None])
        if self.all_ready and not self._stopping:
            self._on_all_ready(on_ready)

    def _fill(self, post: _Post) -> None:
        """Give a place to the spare process, or to a new one."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.code is not None:
            spare.end(0.0)
            spare = None
        post.child = spare or self._new_child()
        wish = {"number": post.number, "restarts": self.restarts, "orders": list(self._book.past)}
        post.child.begin({**self._wish, **wish})

    def _new_child(self) -> Child:
        return Child(self._command, self._listener, self._shared)

    def _on_all_ready(self, on_ready: Callable[[Listening], None] | None) -> None:
        ready = self._posts[0].child.ready if self._posts[0].child is not None else None
        if self._listening is None and ready is not None:
            self._listening = Listening(**{**ready, "models": tuple(ready["models"])})
            if on_ready is not None:
                on_ready(self._listening)
        if self._wants_spare and self._spare is None:
            self._spare = self._new_child()

    def _check(self, post: _Post, child: Child, now: float) -> None:
        """Kill a worker that hangs, or that is not gone when it should be."""
        if self._stopping:
            if now > self._kill_at:
                child.kill()
        elif child.ready is not None:
            post.failed_loads = 0
            if now - child.heard > self._hang_seconds:
                _LOG.error("worker %d (process %d) hangs: it is replaced", post.number, child.process.pid)
                child.kill()
        elif now - child.since > self._load_seconds:
            _LOG.error("worker %d (process %d) does not get ready: it is replaced", post.number, child.process.pid)
            child.kill()

    def _on_death(self, post: _Post, child: Child, now: float) -> None:
        post.child = None
        child.end(0.0)
        fold(self._shared.board, post.number)
        if self._stopping:
            return
        was_ready = child.ready is not None
        if not was_ready:
            self._on_failed_load(post, child)
        post.deaths = 1 if was_ready and now - child.since >= _STEADY_SECONDS else post.deaths + 1
        first = was_ready and post.deaths == 1
        pause = 0.0 if first else min(_LONGEST_PAUSE, 0.25 * 2 ** min(post.deaths - 1, 10))
        post.due = now + pause
        self.restarts += 1
        for other in self._posts:
            if other.child is not None:
                other.child.send({"restarts": self.restarts})
        _LOG.error("worker %d ended: %s; it is started again in %.1f s", post.number, child.end_in_words, pause)

    def _on_failed_load(self, post: _Post, child: Child) -> None:
        """Raise where there is no hope: nobody serves, and the load fails by its own word or again and again."""
        post.failed_loads += 1
        if any(other.child is not None and other.child.ready is not None for other in self._posts):
            return  # the others go on; this one is tried again
        if child.said is not None and self._listening is None:
            kind = ConfigError if child.said["config"] else BundleError
            raise kind(child.said["failed"])
        if post.failed_loads >= _LOADS:
            raise SupervisorError(
                f"a worker died {post.failed_loads} times in a row before it was ready",
                found=child.end_in_words,
                fix="serve the bundle without --workers to see why, and check the machine's memory",
            )

    def _on_signal(self, number: int) -> None:
        if number == getattr(signal, "SIGHUP", None):
            self._signal_all(number)
            return
        if not self._stopping:
            self._kill_at = time.monotonic() + self._drain_seconds + 10.0
        self._stopping = True
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for post in self._posts:
            if post.child is not None:
                post.child.signal(number)

    def _end_all(self) -> None:
        """Leave no process behind, whatever happened."""
        self._signal_all(signal.SIGTERM)
        until = time.monotonic() + (0.1 if self._stopping else 5.0)
        if self._spare is not None:
            self._spare.kill()
            self._spare.end(5.0)
        for post in self._posts:
            if post.child is not None:
                post.child.end(max(0.1, until - time.monotonic()))
                post.child = None

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {getattr(signal, name): signal.signal(getattr(signal, name), note) for name in names}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def supervise(
    models: Mapping[str, Path], options: ServerOptions, workers: int, on_ready: Callable[[Listening], None] | None
) -> None:
    """Serve bundles with `workers` processes until SIGTERM. Raises what `serve` raises."""
    if not 1 <= workers <= 256:
        raise ConfigError("the number of workers is out of range", found=workers, wanted="1 to 256")
    if os.name != "posix":
        raise ConfigError("workers need a POSIX system", fix="serve without --workers")
    options.safety.keys(options.host)
    options.safety.tls()
    with ExitStack() as sockets:
        listener = sockets.enter_context(bind(options.host, options.port))
        listener.listen(2048)
        if options.grpc_port is not None:
            kept = sockets.enter_context(reserve(options.host, options.grpc_port))
            options = options.replace(grpc_port=kept.getsockname()[1])
        wish = {
            "models": {name: str(path) for name, path in models.items()},
            "options": options.model_dump(mode="json"),
        }
        drain_seconds = options.limits.drain_seconds
        Supervisor(wish, listener, workers, spare=options.spare, drain_seconds=drain_seconds).run(on_ready)
