"""One run of one contestant of `train_gpt`: `python -m benchmarks.children.gpt_run NAME FOLDER RESULT`.

Not here: what the contestants do; this file times them and writes down what they report.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from benchmarks.children.step_clock import StepClock
from benchmarks.gpt import documents, ours, peers
from benchmarks.gpt.matmul import matmul_run
from benchmarks.gpt.workload import Workload

Result = dict[str, object]

BATCHES: dict[str, Callable[[Workload], list[float]]] = {
    "ours": ours.train_batches,
    "hf-trainer-as-it-comes": peers.hf_as_it_comes,
    "hf-trainer": peers.hf_tuned,
    "lightning": peers.lightning,
    "raw-loop": peers.raw_loop,
}
DOCUMENTS: dict[str, Callable[[Workload], documents.Trained]] = {
    "documents-ours": ours.train_documents,
    "documents-ours-joined": ours.train_documents_joined,
    "documents-hf": documents.hf_padded,
    "documents-hf-compiled": documents.hf_padded_compiled,
    "documents-hf-matched": documents.hf_matched,
    "documents-hf-matched-compiled": documents.hf_matched_compiled,
}


def run(name: str, workload: Workload) -> Result:
    """Run the contestant; returns `{"value", "outputs", "details"}`."""
    if name == "torch-mm":
        return matmul_run(workload)
    return _run_batches(name, workload) if name in BATCHES else _run_documents(name, workload)


def _run_batches(name: str, workload: Workload) -> Result:
    with StepClock() as clock:
        losses = BATCHES[name](workload)
    seconds = clock.step_seconds()
    if len(losses) != workload.steps or len(seconds) != workload.steps:
        raise SystemExit(f"{name}: {len(losses)} losses and {len(seconds)} steps; wanted {workload.steps} of each")
    timed = seconds[workload.skip :]
    outputs = {"first_loss": losses[0], "final_loss": fmean(losses[-5:])}
    details = {"losses": losses, "median_step_seconds": median(timed), **_common(seconds)}
    return {"value": workload.tokens_per_step / fmean(timed), "outputs": outputs, "details": details}


def _run_documents(name: str, workload: Workload) -> Result:
    with StepClock() as clock:
        trained = DOCUMENTS[name](workload)
    seconds = clock.step_seconds()
    if len(seconds) != len(trained.targets) or len(seconds) < workload.skip + trained.timed:
        raise SystemExit(f"{name}: {len(seconds)} steps timed, {len(trained.targets)} seen, {trained.timed} wanted")
    timed = slice(-trained.timed, None)
    held_out = documents.held_out_loss(trained.logits, workload)
    outputs = {"first_loss": trained.losses[0], "held_out_loss": held_out, "steps": float(len(seconds))}
    details = {"losses": trained.losses, "target_tokens": sum(trained.targets), **_common(seconds)}
    return {"value": sum(trained.targets[timed]) / sum(seconds[timed]), "outputs": outputs, "details": details}


def _common(seconds: list[float]) -> dict[str, object]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds_to_first_step": round(seconds[0], 2),
        "step_seconds": [round(second, 4) for second in seconds],
        "peak_memory_mib": round(peak / 1024, 1),
    }


def main(argv: list[str]) -> None:
    """Run `NAME FOLDER RESULT`."""
    name, folder, result = argv
    started = time.perf_counter()
    found = run(name, Workload.load(folder))
    value = found["value"]
    if not isinstance(value, float) or not math.isfinite(value):
        raise SystemExit(f"{name}: the figure is {value}")
    Path(result).write_text(json.dumps({**found, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(sys.argv[1:])
