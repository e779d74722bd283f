"""Requests compared with the training data while the server runs: beside the event loop, and only as many as it can.

A request is laid into a short queue, which costs a microsecond; one thread compares what is there. What does not fit
is left out and counted. Nothing of a request is kept or logged but bin numbers.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek.errors import BundleError
from deepseek.serve.monitoring.definitions import Sample
from deepseek.serve.monitoring.drift import Drift
from deepseek.serve.monitoring.features import Features, of_inputs, of_outputs, of_row
from deepseek.serve.monitoring.profile import Profile, read_profile

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted

_LOG = logging.getLogger("deepseek.serve")
_QUEUE = 1024
_QUEUE_BYTES = 32 << 20
_SHOWN = 32
_PAUSE = 0.25
_Seen = tuple[Any, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]


class Watch:
    """One model's requests against its profile."""

    def __init__(self, profile: Profile, name: str = "") -> None:
        self.profile = profile
        self.name = name
        self.inputs = Drift(profile.features)
        self.scores = Drift(profile.scores)
        self.watched = self.left_out = self.anomalies = 0
        self._queue: deque[tuple[int, _Seen]] = deque()
        self._bytes = 0
        self._working = threading.Lock()

    def offer(self, instance: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> bool:
        """Lay a request into the queue; False where it is full. `instance` is its natural form, None if it has none."""
        if self.profile.of == "rows" and not isinstance(instance, Mapping):
            return False
        seen: _Seen = (instance, {}, outputs) if self.profile.of == "rows" else (None, inputs, outputs)
        size = _size_of(seen)
        if len(self._queue) >= _QUEUE or self._bytes + size > _QUEUE_BYTES:
            self.left_out += 1
            return False
        self._bytes += size
        self._queue.append((size, seen))
        return True

    def work(self) -> int:
        """Compare what waits; return how many requests that were."""
        with self._working:
            return self._work()

    def _work(self) -> int:
        taken: list[_Seen] = []
        while self._queue and len(taken) < 256:
            size, seen = self._queue.popleft()
            self._bytes -= size
            taken.append(seen)
        rows: list[Features] = []
        answers: list[Features] = []
        for instance, inputs, outputs in taken:
            rows += [of_row(instance)] if self.profile.of == "rows" else of_inputs(inputs)
            answers += of_outputs(outputs)
        if rows:
            self.see(rows, answers)
        return len(taken)

    def see(self, rows: Sequence[Features], answers: Sequence[Features] = ()) -> None:
        """Compare rows of features, and those of the model's answers."""
        before = self.inputs.alarms
        self.inputs.add(rows)
        if answers and self.profile.scores:
            self.scores.add(answers)
        if self.profile.anomalies is not None:
            self.anomalies += int((self.profile.anomalies.scores(rows) > self.profile.anomalies.threshold).sum())
        self.watched += len(rows)
        fresh = sorted(set(self.inputs.alarms) - set(before))
        if fresh:
            _LOG.warning("requests to '%s' drifted from its training data: %s", self.name, ", ".join(fresh[:8]))


class Watches:
    """The watches of all models that have a profile, and the thread that does their work."""

    def __init__(self) -> None:
        self._watches: weakref.WeakKeyDictionary[Hosted, Watch | None] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._wake, self._rest = threading.Event(), threading.Event()
        self._end = False
        self._thread: threading.Thread | None = None

    def see(
        self, hosted: Hosted, instance: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        """Have a request compared, some time soon. It never fails and never waits."""
        if hosted.profile is None:
            return
        watch = self.of(hosted)
        if watch is not None and watch.offer(instance, inputs, outputs) and not self._wake.is_set():
            self._wake.set()

    def of(self, hosted: Hosted) -> Watch | None:
        """Return a model's watch; None where its bundle has no profile, or one that can't be read."""
        if hosted in self._watches:
            return self._watches[hosted]
        watch = None if hosted.profile is None else _watch(hosted.name, hosted.profile)
        with self._lock:
            self._watches[hosted] = watch
            if watch is not None and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="deepseek-watch", daemon=True)
                self._thread.start()
        return watch

    def samples(self) -> Iterator[Sample]:
        """Yield what is known now, for `/metrics`."""
        with self._lock:  # of several versions the one that came last
            watches = {hosted.name: watch for hosted, watch in self._watches.items() if watch is not None}
        for model, watch in watches.items():
            one = (model,)
            yield "deepseek_watched_total", one, watch.watched
            yield "deepseek_unwatched_total", one, watch.left_out
            yield "deepseek_anomalies_total", one, watch.anomalies
            found = {**watch.inputs.latest, **watch.scores.latest}
            yield "deepseek_drift_alarms", one, sum(drift.alarm for drift in found.values())
            highest = sorted(found.items(), key=lambda item: -item[1].psi)[:_SHOWN]
            for name, drift in highest:
                yield "deepseek_drift_psi", (model, name[:64]), drift.psi

    def flush(self) -> None:
        """Compare all that waits, here and now."""
        with self._lock:
            watches = [watch for watch in self._watches.values() if watch is not None]
        for watch in watches:
            while watch.work():
                pass

    def close(self) -> None:
        """End the thread."""
        self._end = True
        self._rest.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def _work(self) -> None:
        while not self._end:
            self._wake.wait()
            self._rest.wait(_PAUSE)  # a few dozen requests together cost hardly more than one
            self._wake.clear()
            try:
                self.flush()
            except Exception:  # a request of a kind that no profile knows: the server goes on
                _LOG.exception("a request could not be compared with the training data")


def _size_of(seen: _Seen) -> int:
    """Return about how many bytes a request holds."""
    instance, inputs, outputs = seen
    arrays = [*inputs.values(), *outputs.values()]
    size = sum(value.nbytes if value.dtype != object else sum(map(len, map(str, value.flat))) for value in arrays)
    cells = instance.values() if isinstance(instance, Mapping) else ()
    return size + sum(len(cell) if isinstance(cell, str) else 32 for cell in cells)


def _watch(name: str, values: Mapping[str, Any]) -> Watch | None:
    try:
        return Watch(read_profile(values), name)
    except BundleError as error:
        _LOG.warning("drift of '%s' is not watched: %s", name, error)
        return None
