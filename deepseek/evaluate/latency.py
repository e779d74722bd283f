"""How long a model takes: one run of it (percentiles), or, for text, the first token (prefill) and each one after it.

Not here: the settings that make it fast (`deepseek.export.tune`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.generation import SamplingConfig, stream_tokens

_FEWEST = 3
"""Runs that are timed whatever the time limit says."""


class Runs(Protocol):
    """What can be timed: the runtimes of `deepseek.export.runtimes`."""

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run once."""
        ...


class Latency(NamedTuple):
    """Times of single runs, in milliseconds. A percentile is the smallest time that so many percent do not exceed."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the percentiles (nearest rank) of at least one time."""
        ordered = sorted(seconds)

        def at(percent: int) -> float:
            return ordered[math.ceil(percent / 100 * len(ordered)) - 1] * 1e3

        return cls(at(50), at(90), at(99), statistics.fmean(ordered) * 1e3, len(ordered))


def measure(
    runtime: Runs, inputs: Mapping[str, Tensor], *, seconds: float = 1.0, warmup: int = 3, max_runs: int = 10_000
) -> Latency:
    """Run again and again for about `seconds` after up to `warmup` runs, and return the percentiles of a run's time.

    At least three runs are timed, at most `max_runs`. What `runtime.run` raises goes through.
    """
    return measure_in_turn([runtime], inputs, seconds=seconds, rounds=1, warmup=warmup, max_runs=max_runs)[0]


def measure_in_turn(
    runtimes: Sequence[Runs],
    inputs: Mapping[str, Tensor],
    *,
    seconds: float = 1.0,
    rounds: int = 4,
    warmup: int = 3,
    max_runs: int = 10_000,
) -> list[Latency]:
    """Time several runtimes in turn (A B A B ...), `rounds` times, about `seconds` each in all.

    What slows the machine for a while then slows all of them. Raises ConfigError for a limit below zero.
    """
    if seconds <= 0 or rounds < 1 or warmup < 0 or max_runs < 1:
        found = f"seconds={seconds}, rounds={rounds}, warmup={warmup}, max_runs={max_runs}"
        raise ConfigError("nothing can be timed like this", found=found, wanted="a time above zero, one round, one run")
    for runtime in runtimes:
        _warm_up(runtime, inputs, warmup, seconds)
    times: list[list[float]] = [[] for _ in runtimes]
    fewest, most = math.ceil(_FEWEST / rounds), math.ceil(max_runs / rounds)
    for _ in range(rounds):
        for runtime, own in zip(runtimes, times, strict=True):
            own += _timed(runtime, inputs, seconds / rounds, fewest, most)
    return [Latency.of(own[: max(max_runs, _FEWEST)]) for own in times]


def _warm_up(runtime: Runs, inputs: Mapping[str, Tensor], runs: int, seconds: float) -> None:
    """Run up to `runs` times, but begin no further one after `seconds`."""
    end = _now() + seconds
    for done in range(runs):
        if done and _now() >= end:
            return
        runtime.run(inputs)


def _timed(runtime: Runs, inputs: Mapping[str, Tensor], seconds: float, fewest: int, most: int) -> list[float]:
    times: list[float] = []
    end = _now() + seconds
    while len(times) < fewest or (len(times) < most and _now() < end):
        start = _now()
        runtime.run(inputs)
        times.append(_now() - start)
    return times


def measure_generation(
    model: nn.Module, prompt_ids: list[int], new_tokens: int = 32, repeats: int = 3
) -> dict[str, Any]:
    """Return `prefill_ms` and `token_ms` {median, p10, p90} of greedy generation after `prompt_ids`.

    One run to warm up, then `repeats` runs; the model's mode is restored.
    """
    was_training = model.training
    model.eval()
    sampling = SamplingConfig(max_new_tokens=new_tokens, do_sample=False)
    prefill, tokens = [], []
    try:
        for repeat in range(repeats + 1):
            times = [_now()]
            for _ in stream_tokens(model, prompt_ids, sampling):
                times.append(_now())
            if repeat:
                prefill.append(times[1] - times[0])
                tokens += [after - before for before, after in zip(times[1:], times[2:], strict=False)]
    finally:
        model.train(was_training)
    return {"prefill_ms": statistics.median(prefill) * 1e3, "token_ms": _spread(tokens or prefill)}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3

    return {"median": statistics.median(ordered) * 1e3, "p10": at(0.1), "p90": at(0.9)}
