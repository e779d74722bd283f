"""Measures, on a run's own first batch, which way of computing is fastest here, and remembers it for the next run.

Only where it pays: a planned run so long that the expected gain is above what measuring costs. The options of
`deepseek.nn.choices` are timed in turns (A B C A B C ...) over whole passes forward and backward. What was found is
kept in the user's cache folder, by machine, model, shapes and number format; a run keeps its decision in its
checkpoints, so that a resumed one computes alike. Not here: whether to compile (`compile.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.errors import StorageError
from deepseek.files import write_json
from deepseek.hardware import environment
from deepseek.nn import choices
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task, to_device
from deepseek.train.text_data import cache_folder

logger = logging.getLogger("deepseek.train")

_GAIN = 0.05  # share of the run that the better option is expected to save
_MARGIN = 0.03  # an option must beat the code's own rule by this share: less is noise
_ROUNDS = 3
_FORMAT = 1


class TunableStep(Protocol):
    """What is timed: `deepseek.train.step.TrainStep` is one."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    precision: Precision

    def backward(self, batches: Sequence[Any], items: int) -> Any:
        """Do a whole pass, forward and backward."""
        ...


class Tuned(NamedTuple):
    """What was chosen (a choice left to the code's own rule is not in it), why, and the seconds that it took."""

    chosen: dict[str, str]
    reason: str
    seconds: float


def tune(
    step: TunableStep,
    batches: Sequence[Any],
    names: Sequence[str] = ("attention",),
    *,
    step_seconds: float,
    planned_seconds: float,
    compile_seconds: float = 0.0,
    folder: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuned:
    """Return the fastest option of each choice in `names` for this step; nothing is in force after it.

    `step_seconds` is what a pass takes, `planned_seconds` the whole run; where the step is compiled, `compile_seconds`
    is what compiling it took, and each option costs it again. `folder` is the cache's; None is the user's. The caller
    restores random states, buffers and gradients, as `compile.prepare` does.
    """
    begin = clock()
    folder = folder if folder is not None else cache_folder() / "choices"
    chosen: dict[str, str] = {}
    reasons = []
    for name in names:
        path = folder / f"{_key(step, batches, name, compile_seconds > 0)}.json"
        option = _remembered(path, name)
        if option is not None:
            reasons.append(f"{name}: {option or 'as usual'} (measured before)")
        else:
            candidates = 1 + len(choices.OPTIONS[name])
            cost = candidates * ((_ROUNDS + 1) * step_seconds + compile_seconds)
            if cost > _GAIN * planned_seconds:
                reasons.append(f"{name}: not measured, it would cost {cost:.1f} s")
                continue
            with choices.using(chosen):
                times = _times(step, batches, name, clock)
            option = _best(times)
            reasons.append(f"{name}: {option or 'as usual'} " + _told(times))
            _remember(path, name, option, times)
        if option:
            chosen[name] = option
    return Tuned(chosen, "; ".join(reasons), clock() - begin)


def _times(step: TunableStep, batches: Sequence[Any], name: str, clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of the fastest pass of each option; "" is the code's own rule."""
    batches = [to_device(batch, step.precision.device) for batch in batches]
    items = max(1, sum(step.task.count(batch) for batch in batches))
    fastest: dict[str, float] = {}
    for turn in range(_ROUNDS + 1):
        for option in ("", *choices.OPTIONS[name]):
            with choices.using({name: option} if option else {}):
                start = clock()
                step.backward(batches, items)
                seconds = clock() - start
            step.optimizer.zero_grad(set_to_none=True)
            if turn:  # the first turn compiles and allocates
                fastest[option] = min(seconds, fastest.get(option, seconds))
    return fastest


def _best(times: dict[str, float]) -> str:
    """Return the fastest option, "" where none beats the code's own rule by the margin."""
    option = min(times, key=times.__getitem__)
    return option if times[option] < (1 - _MARGIN) * times[""] else ""


def _told(times: dict[str, float]) -> str:
    return "(" + ", ".join(f"{option or 'as usual'} {seconds * 1e3:.1f} ms" for option, seconds in times.items()) + ")"


def _key(step: TunableStep, batches: Sequence[Any], name: str, compiled: bool) -> str:
    """Return a digest of all that decides which option is fastest."""
    facts = {
        "machine": machine(),
        "choice": [name, *choices.OPTIONS[name]],
        "model": [type(step.model).__name__, [list(p.shape) for p in step.model.parameters()]],
        "batch": [_shapes(batch) for batch in batches],
        "precision": [step.precision.name, str(step.precision.device)],
        "compiled": compiled,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def machine() -> dict[str, Any]:
    """Return what tells machines apart in matters of speed: processor, threads, GPU, allocator, versions."""
    found = environment()
    kept = ("torch", "system", "cpu", "physical_cores", "threads", "cpu_features", "gpu", "allocator")
    return {name: found[name] for name in kept} | {"cpus": os.cpu_count(), "cuda": torch.version.cuda}


def _shapes(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return [str(batch.dtype), list(batch.shape)]
    if isinstance(batch, dict):
        return {str(key): _shapes(value) for key, value in batch.items()}
    return [_shapes(value) for value in batch] if isinstance(batch, list | tuple) else type(batch).__name__


def _remembered(path: Path, name: str) -> str | None:
    """Return the option found before, "" for the code's own rule, None where nothing (readable) is kept."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        option = kept["option"]
        fits = kept["format"] == _FORMAT and kept["choice"] == name and option in ("", *choices.OPTIONS[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(option) if fits else None


def _remember(path: Path, name: str, option: str, times: dict[str, float]) -> None:
    try:
        write_json(path, {"format": _FORMAT, "choice": name, "option": option, "seconds": times, "machine": machine()})
    except (StorageError, OSError) as error:
        logger.warning("what was measured is not kept for the next run: %s", error)
