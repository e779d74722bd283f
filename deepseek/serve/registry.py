"""The versions of all models by name: which of them answers a request, and what is known of each.

Not here: loading, replacing and unloading them (see `service`).
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Literal

from deepseek.errors import RequestError
from deepseek.serve.hosted import Hosted, Lease, State
from deepseek.serve.versions import Change, ModelStatus, Slot, check_share, no_model, no_version, scale, states_of

_LOG = logging.getLogger("deepseek.serve")


class Registry:
    """Names and versions. Its slots change under its lock only."""

    def __init__(self) -> None:
        self.stopping = False
        self.hosted: dict[str, Hosted] = {}
        """The main version of each name that is loaded."""
        self.changes = 0
        """Goes up whenever a name may be answered by other versions than before."""
        self._slots: dict[str, Slot] = {}
        self._lock = threading.Lock()
        self._watchers: list[Callable[[Change], None]] = []
        self._random = random.Random()  # noqa: S311 - shares of traffic, no secrets

    @property
    def ready(self) -> bool:
        """Whether all models that the server began with were tried, one can answer, and the server is not stopping."""
        if self.stopping:
            return False
        with self._lock:
            slots = list(self._slots.values())
            states = [state for slot in slots if slot.first for state in states_of(slot)]
            usable = any(hosted.state == "ready" for slot in slots for hosted in slot.versions.values())
        return usable and not {"loading", "checking"} & set(states)

    def states(self) -> dict[str, State]:
        """Return each name's state: that of its main version, else what became of loading it."""
        with self._lock:
            return {name: states_of(slot)[0] for name, slot in self._slots.items()}

    def find(self, name: str | None, version: str | None = None) -> Hosted:
        """Return a model by name; without a name, the only one there is. It is not held: see `use`.

        Raises RequestError: 404 for a name that is not served, 400 where one is needed, 503 while it is not ready.
        """
        with self._lock:
            return self._pick(name, version)

    def steady(self, name: str, version: str | None = None) -> Hosted | None:
        """Return a model that every request for it gets until `changes` goes up; None where shares decide.

        It is not held. Raises what `find` raises.
        """
        with self._lock:
            hosted = self._pick(name, version)
            return hosted if version is not None or len(self._slots[name].versions) == 1 else None

    def use(self, name: str | None, version: str | None = None) -> Lease:
        """Return a context manager that gives a model and holds it; without a version the shares decide which.

        Raises what `find` raises.
        """
        with self._lock:
            hosted = self._pick(name, version)
            hosted.hold()
        return Lease(hosted)

    def index(self) -> list[dict[str, str]]:
        """Return name, version, state and reason of every version, in the words of KServe v2's repository index."""
        words = {"ready": "READY", "loading": "LOADING", "checking": "LOADING", "unloading": "UNLOADING"}
        return [
            {
                "name": one.name,
                "version": one.version,
                "state": words.get(one.state, "UNAVAILABLE"),
                "reason": one.reason,
            }
            for one in self.status()
        ]

    def status(self) -> list[ModelStatus]:
        """Return every version that is loaded, being loaded, or failed or was unloaded last."""
        lines = []
        with self._lock:
            for name, slot in self._slots.items():
                for version in sorted({*slot.versions, *slot.pending}):
                    hosted = slot.versions.get(version)
                    state = slot.pending.get(version) if hosted is None else hosted.state
                    reason = slot.reasons.get(version, "")
                    share, timings = slot.shares.get(version, 0.0), {} if hosted is None else hosted.timings
                    kind = None if hosted is None else hosted.kind
                    lines.append(ModelStatus(name, version, kind, state or "unloaded", reason, share, timings))
        return lines

    def set_weight(self, name: str, version: str, share: float) -> None:
        """Give a loaded version `share` (0 to 1) of the requests that name none; the others keep their proportions.

        Raises RequestError (404, 400).
        """
        check_share(share)
        with self._lock:
            slot = self._slot(name)
            if version not in slot.versions:
                raise no_version(name, version, slot.versions)
            others = {one: slot.shares.get(one, 0.0) for one in slot.versions if one != version}
            if share < 1 and not others:
                raise RequestError("the only version takes every request", field="share", found=share, wanted=1)
            if share < 1 and not sum(others.values()):
                others = dict.fromkeys(others, 1.0)
            scale(others, 1.0 - share)
            slot.shares = {**others, version: share}
            self._publish()
        self._tell("weights", name, version)

    def on_change(self, callback: Callable[[Change], None]) -> None:
        """Have `callback` called after every change, on the thread that made it."""
        self._watchers.append(callback)

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again."""
        return max((hosted.engine.retry_after() for hosted in self._all()), default=1)

    def _pick(self, name: str | None, version: str | None) -> Hosted:
        if name is None:
            if len(self._slots) != 1:
                wanted = " or ".join(sorted(self._slots)) or None
                raise RequestError("'model' is missing", field="model", wanted=wanted)
            name = next(iter(self._slots))
        slot = self._slots.get(name)
        if slot is None or (not slot.versions and set(slot.pending.values()) <= {"unloaded"}):
            raise no_model(name, self.hosted)
        if version is not None:
            if version not in slot.versions and slot.pending.get(version) not in ("loading", "failed"):
                raise no_version(name, version, slot.versions)
            hosted = slot.versions.get(version)
        elif len(slot.versions) == 1:
            (hosted,) = slot.versions.values()
        else:
            hosted = self._draw(slot)
        if self.stopping or hosted is None or hosted.state != "ready":
            reason = "the server is stopping" if self.stopping else f"the model '{name}' is not ready"
            raise RequestError(reason, status=503, fix="try again in a moment")
        return hosted

    def _draw(self, slot: Slot) -> Hosted | None:
        """Return a version by the shares."""
        place = self._random.random()
        for version, share in slot.shares.items():
            place -= share
            if place < 0 and version in slot.versions:
                return slot.versions[version]
        return slot.main

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise no_model(name, self._slots)
        return self._slots[name]

    def _all(self) -> list[Hosted]:
        with self._lock:
            return [hosted for slot in self._slots.values() for hosted in slot.versions.values()]

    def _publish(self) -> None:
        """Make `hosted` anew: whoever goes through it keeps the mapping they began with."""
        self.hosted = {name: main for name, slot in self._slots.items() if (main := slot.main) is not None}
        self.changes += 1

    def _tell(
        self, kind: Literal["loading", "loaded", "failed", "unloaded", "weights"], name: str, version: str
    ) -> None:
        _LOG.info("model '%s' version %s: %s", name, version, kind)
        for watcher in self._watchers:
            try:
                watcher(Change(kind, name, version))
            except Exception:  # who watches must not hold up who serves
                _LOG.exception("a watcher failed on '%s' of the model '%s'", kind, name)
