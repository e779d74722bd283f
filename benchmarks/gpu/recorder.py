"""Times the steps of any training loop on a GPU and records the kernels of some, without a change to the loop.

torch's hook after each optimizer step puts an event into the stream, so that no step waits for the clock; kernels are
recorded (CUPTI, through torch.profiler) in steps of their own, which the figure leaves out. On a machine without a GPU
the clock is the CPU's and no kernel is seen. Not here: what the times mean (`timeline`, `flops`).
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.timeline import Span

_ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


class GpuRecorder:
    """Between `with` and its end, stamps each optimizer step; profiles the last `profiled` of `steps` steps."""

    def __init__(self, steps: int, profiled: int) -> None:
        self.steps, self.profiled = steps, profiled
        self.spans: list[Span] = []
        self._stamps: list[Any] = []
        self._done = 0
        self._on_gpu = torch.cuda.is_available()
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> GpuRecorder:
        self._handle = register_optimizer_step_post_hook(self._after_step)
        self._stamp()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._handle.remove()
        if self._profiler is not None:
            self._stop()

    def step_seconds(self) -> list[float]:
        """Return the seconds of each step that was not profiled, the first one counted from `with`."""
        stamps = self._stamps[: self.steps - self.profiled + 1]
        if self._on_gpu:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(stamps, stamps[1:], strict=False)]
        return [b - a for a, b in zip(stamps, stamps[1:], strict=False)]

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stamp()
        self._done += 1
        if self._done == self.steps - self.profiled and self.profiled:
            self._profiler = torch.profiler.profile(activities=[_activity(self._on_gpu)])
            self._profiler.start()
        elif self._done == self.steps and self._profiler is not None:
            self._stop()

    def _stamp(self) -> None:
        if not self._on_gpu:
            self._stamps.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._stamps.append(event)

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        profiler.stop()
        kineto = profiler.profiler
        if kineto is None or kineto.kineto_results is None:
            return
        self.spans = [
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in kineto.kineto_results.events()
            if event.activity_type() in _ON_GPU
        ]


def _activity(on_gpu: bool) -> Any:
    return torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
