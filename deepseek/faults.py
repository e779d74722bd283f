"""Faults on purpose: a disk that fills up, a process killed in mid-save, a loss that turns to NaN, at a chosen moment.

Public test API. The framework calls `fault_point(site)` where things go wrong in real life; a `FaultInjector` makes the
nth call fail as the real thing does:

    with FaultInjector("checkpoint.write", nth=2, kind="disk_full"):
        trainer.train()  # the second write of a checkpoint finds the disk full

A process started with DEEPSEEK_FAULT="checkpoint.rename:3:kill" dies at its third rename. The forms of that variable:
`SITE:WHEN:KIND[:AMOUNT]`, several with commas; WHEN is `3` (the third time), `3/2` (the third, then every second) or
`0.01@7` (each time with that chance, seeded with 7); AMOUNT is in seconds.
Not here: faults of hardware below the process, such as flipped bits in memory.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from deepseek.errors import ConfigError, did_you_mean

VARIABLE = "DEEPSEEK_FAULT"

SITES = {
    "data.next": "before the next batch is read",
    "step.begin": "before the first forward pass of an optimizer step",
    "step.forward": "before the forward pass of each micro-batch",
    "step.backward": "after each forward pass; nan makes that loss NaN",
    "step.update": "before the optimizer changes weights; nan makes the gradients NaN",
    "validation": "before a validation",
    "checkpoint.copy": "before the state is copied for a checkpoint",
    "checkpoint.write": "before a file of a checkpoint is written",
    "checkpoint.fsync": "before a file of a checkpoint is synced to the disk",
    "checkpoint.rename": "before a checkpoint gets its final name",
    "checkpoint.remove": "before an old checkpoint is removed",
    "checkpoint.read": "before a checkpoint is read",
}
"""The places of the framework that call `fault_point`. Own code may call it with names that begin with `user.`."""


class InjectedFault(RuntimeError):
    """What kind `exception` raises: an error that nobody expects."""


class FaultInjector:
    """While its block runs, the nth call of `fault_point` at a site fails in the way `kind` says.

    `site` may hold wildcards (`checkpoint.*`). `nth` counts from 1, in this process, from the start of the block, over
    all threads. With `every` it happens again each `every` calls after the nth; with `chance` (0 to 1, `seed`ed) it
    happens at random from the nth call on. `amount` is the seconds of a `delay` (0.05) or a `clock_jump` (25 hours).
    Kinds: disk_full, io_error, read_only (OSError as the system raises it), out_of_memory (RuntimeError in torch's
    words), exception (InjectedFault), kill, term, interrupt (signals to this process), nan (the caller spoils its
    numbers), delay, clock_jump (the wall clock, until the block ends). Raises ConfigError for an unknown site or kind.
    `reached` and `fired` count what happened.
    """

    def __init__(
        self,
        site: str,
        nth: int = 1,
        kind: str = "exception",
        *,
        every: int | None = None,
        chance: float | None = None,
        seed: int = 0,
        amount: float | None = None,
    ) -> None:
        if not site.startswith("user.") and not any(fnmatch.fnmatchcase(known, site) for known in SITES):
            raise ConfigError("unknown fault site", found=repr(site), fix=did_you_mean(site, SITES))
        if kind not in _KINDS:
            raise ConfigError("unknown kind of fault", found=repr(kind), fix=did_you_mean(kind, _KINDS))
        if nth < 1 or (every is not None and every < 1) or (chance is not None and not 0 <= chance <= 1):
            wanted = "nth and every of 1 or more, chance from 0 to 1"
            raise ConfigError("a fault that can't happen", found=f"{nth=}, {every=}, {chance=}", wanted=wanted)
        self.site, self.nth, self.kind = site, nth, kind
        self.every, self.chance, self.amount = every, chance, amount
        self.reached = 0
        self.fired = 0
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> FaultInjector:
        global _active
        with _lock:
            self.reached, self.fired, self._random = 0, 0, random.Random(self._seed)  # noqa: S311
            _active = (*(_active or ()), self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        with _lock:
            _active = tuple(one for one in _active or () if one is not self) or None
        while self._undo:
            self._undo.pop()()

    def _is_due(self, site: str) -> bool:
        """Count a call; return whether the fault happens now. The caller holds the lock."""
        if not fnmatch.fnmatchcase(site, self.site):
            return False
        self.reached += 1
        late = self.reached - self.nth
        if self.chance is not None:
            due = late >= 0 and self._random.random() < self.chance
        else:
            due = late == 0 or (self.every is not None and late > 0 and late % self.every == 0)
        self.fired += due
        return due


def fault_point(site: str) -> bool:
    """Fail here if an injector says so; return True where the caller is to spoil its numbers (kind `nan`).

    Without an injector this is one comparison.
    """
    return False if _active is None else _reach(site)


def faults_from_environment() -> None:
    """Read DEEPSEEK_FAULT and plant what it names until the process ends; done when this module is imported.

    A forked process calls it again. Raises ConfigError for a value of another form.
    """
    global _active
    text = os.environ.get(VARIABLE, "")
    _active = tuple(_parse(part) for part in text.split(",") if part.strip()) or None


def _reach(site: str) -> bool:
    with _lock:
        due = [one for one in _active or () if one._is_due(site)]
    spoil = False
    for injector in due:
        spoil |= _KINDS[injector.kind](injector, site) is True
    return spoil


def _parse(text: str) -> FaultInjector:
    form = f"{VARIABLE} is SITE:WHEN:KIND[:AMOUNT]"
    try:
        site, when, kind, *amount = text.strip().split(":")
        nth, every, chance, seed = 1, None, None, 0
        if "@" in when:
            chance, seed = float(when.partition("@")[0]), int(when.partition("@")[2])
        elif "/" in when:
            nth, every = int(when.partition("/")[0]), int(when.partition("/")[2])
        else:
            nth = int(when)
        seconds = float(amount[0]) if amount else None
    except ValueError:
        raise ConfigError(form, found=repr(text), wanted="such as checkpoint.rename:3:kill") from None
    return FaultInjector(site, nth, kind, every=every, chance=chance, seed=seed, amount=seconds)


def _system_error(code: int) -> Callable[[FaultInjector, str], bool]:
    def fail(injector: FaultInjector, site: str) -> bool:
        raise OSError(code, os.strerror(code), f"<fault at {site}>")

    return fail


def _out_of_memory(injector: FaultInjector, site: str) -> bool:
    """Fail in the words of torch's allocator on a CPU; on CUDA it is torch.OutOfMemoryError, a RuntimeError too."""
    raise RuntimeError(
        f"DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes (fault at {site}). "
        f"Error code {errno.ENOMEM} ({os.strerror(errno.ENOMEM)})"
    )


def _exception(injector: FaultInjector, site: str) -> bool:
    raise InjectedFault(f"fault number {injector.fired} at {site}")


def _signal(name: str) -> Callable[[FaultInjector, str], bool]:
    def send(injector: FaultInjector, site: str) -> bool:
        os.kill(os.getpid(), getattr(signal, name, signal.SIGTERM))  # Windows: SIGTERM ends a process at once
        return False

    return send


def _nan(injector: FaultInjector, site: str) -> bool:
    return True


def _delay(injector: FaultInjector, site: str) -> bool:
    time.sleep(0.05 if injector.amount is None else injector.amount)
    return False


def _clock_jump(injector: FaultInjector, site: str) -> bool:
    """Move the wall clock (time.time, time.time_ns); monotonic clocks can't jump."""
    seconds, nanoseconds = time.time, time.time_ns
    jump = 25 * 3600.0 if injector.amount is None else injector.amount
    time.time = lambda: seconds() + jump
    time.time_ns = lambda: nanoseconds() + int(jump * 1e9)

    def undo() -> None:
        time.time, time.time_ns = seconds, nanoseconds

    injector._undo.append(undo)
    return False


_KINDS: dict[str, Callable[[FaultInjector, str], bool]] = {
    "disk_full": _system_error(errno.ENOSPC),
    "io_error": _system_error(errno.EIO),
    "read_only": _system_error(errno.EROFS),
    "out_of_memory": _out_of_memory,
    "exception": _exception,
    "kill": _signal("SIGKILL"),
    "term": _signal("SIGTERM"),
    "interrupt": _signal("SIGINT"),
    "nan": _nan,
    "delay": _delay,
    "clock_jump": _clock_jump,
}

_lock = threading.Lock()
_active: tuple[FaultInjector, ...] | None = None
faults_from_environment()
