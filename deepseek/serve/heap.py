"""Keeps the garbage collector off what stays: libraries, models, code.

A full collection of a process with PyTorch walks through a million objects, and for so long nobody is answered: a tenth
of a second every few thousand requests. What is there once the models are loaded is frozen (`gc.freeze`), so that a
collection sees only what requests leave. After models were exchanged this is done anew, so that old ones can go.
Only for a process that serves and does nothing else: the collector is shared by all of it.
"""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek.serve.registry import Registry
    from deepseek.serve.versions import Change

_LATER = 30.0
"""Seconds from a change of the models to the next freezing: replaced versions have ended by then."""


class SteadyHeap:
    """In a `with` block: freezes what there is, and again after every change of the models. Its end gives all back."""

    def __init__(self, models: Registry, later: float = _LATER) -> None:
        self._models, self._later = models, later
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> SteadyHeap:
        """Freeze: about 0.1 s in which nothing else runs."""
        self._freeze()
        self._models.on_change(self._changed)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            self._stop()
            gc.unfreeze()

    def _freeze(self) -> None:
        with self._lock:
            if not self._over:
                gc.unfreeze()
                gc.collect()
                gc.freeze()

    def _changed(self, change: Change) -> None:
        with self._lock:
            self._stop()
            if self._over:
                return
            self._timer = threading.Timer(self._later, self._freeze)
            self._timer.daemon = True
            self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
