"""One run of one contestant of `train_bert`: `python -m benchmarks.children.bert_run NAME FOLDER RESULT`.

Not here: what the contestants do; this file times them and writes down what they report.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from benchmarks.bert import ours, peers
from benchmarks.bert.workload import Workload
from benchmarks.children.step_clock import StepClock

CONTESTANTS: dict[str, Callable[[Workload], list[float]]] = {
    "ours": ours.train,
    "ours-eager-fp32": ours.train_eager_fp32,
    "hf-trainer": peers.hf_tuned,
    "hf-trainer-eager-fp32": peers.hf_as_it_comes,
    "raw-loop": peers.raw_loop,
}


def run(name: str, workload: Workload) -> dict[str, object]:
    """Run the contestant; returns `{"value", "outputs", "details"}`, the value in tokens (no padding) per second."""
    with StepClock() as clock:
        losses = CONTESTANTS[name](workload)
    seconds = clock.step_seconds()
    if len(losses) != workload.steps or len(seconds) != workload.steps:
        raise SystemExit(f"{name}: {len(losses)} losses and {len(seconds)} steps; wanted {workload.steps} of each")
    timed = seconds[workload.skip :]
    value = sum(workload.tokens()[workload.skip :]) / sum(timed)
    if not math.isfinite(value) or not all(map(math.isfinite, losses)):
        raise SystemExit(f"{name}: the figure is {value}, the losses are {losses}")
    details = {
        "losses": losses,
        "median_step_seconds": median(timed),
        "seconds_to_first_step": round(seconds[0], 2),
        "step_seconds": [round(second, 4) for second in seconds],
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    return {
        "value": value,
        "outputs": {"first_loss": losses[0], "mean_loss": fmean(losses), "final_loss": fmean(losses[-3:])},
        "details": details,
    }


def main(argv: list[str]) -> None:
    """Run `NAME FOLDER RESULT`."""
    name, folder, result = argv
    Path(result).write_text(json.dumps(run(name, Workload.load(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
