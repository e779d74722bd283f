"""One run of one contestant of `gpu_train`: `python -m benchmarks.children.gpu_run NAME FOLDER RESULT`.

Not here: what the contestants do (`benchmarks.gpu.contestants`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from benchmarks.gpt.workload import Workload
from benchmarks.gpu import contestants
from benchmarks.gpu.flops import bf16_peak, mfu, step_flops
from benchmarks.gpu.recorder import GpuRecorder
from benchmarks.gpu.timeline import Span, summarise

PROFILED = 3
"""Steps at the end whose kernels are recorded; the figure leaves them out."""
CONTESTANTS: dict[str, Callable[[Workload], list[float]]] = {
    "ours": contestants.ours,
    "ours-fp8": contestants.ours_fp8,
    "hf-trainer": contestants.hf_trainer,
    "raw-loop": contestants.raw_loop,
}


def run(name: str, workload: Workload) -> dict[str, object]:
    """Run the contestant; returns `{"value", "outputs", "details"}`, the value in tokens per second."""
    with GpuRecorder(workload.steps, PROFILED) as recorder:
        losses = CONTESTANTS[name](workload)
    seconds = recorder.step_seconds()
    if len(losses) != workload.steps or len(seconds) != workload.steps - PROFILED:
        raise SystemExit(f"{name}: {len(losses)} losses and {len(seconds)} steps of {workload.steps}")
    timed = seconds[workload.skip :]
    value = workload.tokens_per_step / fmean(timed)
    if not math.isfinite(value) or not all(map(math.isfinite, losses)):
        raise SystemExit(f"{name}: the figure is {value}, the losses are {losses}")
    details: dict[str, object] = {"losses": losses, "step_seconds": [round(second, 6) for second in seconds]}
    details |= figures(workload, median(timed), _device_name(), recorder.spans)
    return {"value": value, "outputs": {"first_loss": losses[0], "final_loss": fmean(losses[-5:])}, "details": details}


def figures(workload: Workload, seconds: float, device: str, spans: list[Span]) -> dict[str, object]:
    """Return MFU by both conventions, TFLOP/s, and the sum of the timeline; None for what could not be measured."""
    flops = step_flops(
        layers=workload.layers,
        width=workload.width,
        vocab_size=workload.vocab_size,
        length=workload.length,
        rows=workload.batch_size,
    )
    peak = bf16_peak(device)
    return {
        "device": device,
        "median_step_seconds": seconds,
        "teraflops": flops.causal / seconds / 1e12,
        "mfu": mfu(flops.causal, seconds, peak),
        "mfu_palm": mfu(flops.full, seconds, peak),
        "bf16_peak": peak,
        "timeline": summarise(spans)._asdict() if spans else None,
        "peak_memory_gib": _peak_memory_gib(),
    }


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_memory_gib() -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def main(argv: list[str]) -> None:
    """Run `NAME FOLDER RESULT`."""
    name, folder, result = argv
    Path(result).write_text(json.dumps(run(name, Workload.load(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
