"""The fastest settings of a runtime on this machine: a short search, one setting after the other, each against the best
so far in turn (A B A B). At most two copies of the model are open at a time.

Not here: which runtime (`chosen.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from deepseek.errors import DeepSeekError
from deepseek.evaluate.latency import Latency, measure, measure_in_turn
from deepseek.export.runtimes.runtime import Runtime, Settings
from deepseek.hardware import physical_cores

_BETTER = 0.97  # a setting must win by 3% to be taken: less is noise
_SLICE_S, _ROUNDS = 0.3, 3

Opener = Callable[[Settings], Runtime]


class Tuned(NamedTuple):
    """What the search found."""

    settings: Settings
    latency: Latency
    speedup: float
    """Over the first settings."""
    tried: int
    complete: bool
    """False where time ran out before all settings were tried."""


def tune(
    open_with: Opener,
    inputs: Mapping[str, Tensor],
    *,
    kind: str,
    seconds: float = 5.0,
    first: Settings | None = None,
    is_int8: bool = False,
) -> Tuned:
    """Return the settings with the least median time of `open_with(settings).run(inputs)`.

    `kind` is the runtime's name, which says what can be set: threads everywhere, fixed sizes in ONNX Runtime and
    OpenVINO, spinning in ONNX Runtime, bf16 beside int8 in OpenVINO. `first` (as the runtime comes) counts even when
    the time is up. Settings that do not open are passed over. Raises what opening or running the first settings raises.
    """
    end = time.monotonic() + seconds
    best = first or Settings()
    runtime = open_with(best)
    latency = measure(runtime, inputs, seconds=min(_SLICE_S, seconds))
    speedup, tried = 1.0, 1
    for change in _changes(kind, runtime, inputs, is_int8):
        settings = change(best)
        if settings == best:
            continue
        if time.monotonic() >= end:
            return Tuned(best, latency, speedup, tried, complete=False)
        try:
            other = open_with(settings)
            old, new = measure_in_turn([runtime, other], inputs, seconds=_SLICE_S, rounds=_ROUNDS)
        except DeepSeekError:
            continue
        tried += 1
        if new.p50_ms < old.p50_ms * _BETTER:
            speedup *= old.p50_ms / new.p50_ms
            best, runtime, latency = settings, other, new
    return Tuned(best, latency, speedup, tried, complete=True)


def thread_counts(cores: int | None = None) -> list[int]:
    """Return the counts worth a try: all up to 4 cores, then the powers of two and all cores; most first."""
    cores = cores or physical_cores()
    counts = {1, 2, 3, 4, 8, 16, 32, 64, 128, cores}
    return sorted((count for count in counts if count <= cores), reverse=True)


def fixed_sizes(runtime: Runtime, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes that `inputs` have on the dimensions that may change, by their names in the signature."""
    sizes: dict[str, int] = {}
    for spec in runtime.signature.inputs:
        for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
            if isinstance(axis, str):
                sizes[axis] = size
    return sizes


def _changes(
    kind: str, runtime: Runtime, inputs: Mapping[str, Tensor], is_int8: bool
) -> Iterator[Callable[[Settings], Settings]]:
    """Yield what to try, what usually matters most first; each changes the best settings so far."""
    family = kind.partition(":")[0]
    if family in ("onnxruntime", "openvino"):
        sizes = fixed_sizes(runtime, inputs)
        yield lambda best: best._replace(sizes=sizes)
    if family == "openvino" and is_int8:
        yield lambda best: best._replace(rest="bf16")
    for count in thread_counts():
        yield lambda best, count=count: best._replace(threads=count)  # type: ignore[misc]  # bound per turn
    if family == "onnxruntime":
        yield lambda best: best._replace(spinning=False)
