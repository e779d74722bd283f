"""Ctrl-C and SIGTERM in training: finish the step, save, say how to go on. A second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[Interrupt]:
    """Yield an Interrupt that SIGINT and SIGTERM set; the second signal raises KeyboardInterrupt.

    Only the main thread can catch signals; elsewhere nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested, interrupt.signal = True, number

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
