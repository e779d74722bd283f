"""Dynamic batching: rows a second of ResNet-18 with rows of several requests in one run, and with one row a run.

At the engine, with 64 requests outstanding; beside it what the runtime itself does with 1, 8 and 32 rows, which is the
most that batching can bring. Not here: HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.serve.tensor.describe import close
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.tensor.model import TensorModel

_OUTSTANDING = 64


def batching(contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Return rows a second; `contestant` is `ours` or `ours one by one`."""
    most = 1 if contestant == "ours one by one" else 32
    limits = TensorLimits(max_batch=most, max_queue=4 * _OUTSTANDING)
    model = TensorModel.load(folder / "resnet18", device="cpu", limits=limits)
    model.verify()
    engine = TensorEngine(model, limits)
    engine.start()
    seconds = 3.0 if quick else 10.0
    try:
        rows = _flat_out(engine, model.example(1), seconds)
    finally:
        engine.close(30.0)
    stats = engine.stats()
    details = {
        "rows_of_a_run": stats.rows / max(1, stats.runs),
        "batch_rows": engine.batch_rows,
        "instances": model.instances,
        "runtime": f"{model.plan.runtime} {model.plan.precision}",
        "rows_per_second_by_rows": {size: _rate(model, size, 0.5 if quick else 2.0) for size in (1, 8, 32)},
    }
    return rows / seconds, {"different_answers": float(_different(model))}, details


def _flat_out(engine: TensorEngine, inputs: Mapping[str, np.ndarray], seconds: float) -> int:
    """Keep so many requests outstanding and return how many were answered in `seconds`."""
    done, over = [0], threading.Event()
    end = time.monotonic() + seconds

    def answered(answer: object) -> None:
        now = time.monotonic()
        if isinstance(answer, Exception) or now > end:
            over.set()
            return
        done[0] += 1
        engine.submit(inputs, answered)

    for _ in range(_OUTSTANDING):
        engine.submit(inputs, answered)
    over.wait(seconds + 60)
    return done[0]


def _rate(model: TensorModel, rows: int, seconds: float) -> float:
    """Return rows a second of the runtime with so many rows at once."""
    inputs = model.example(rows)
    model.run(inputs)
    runs, start = 0, time.monotonic()
    while time.monotonic() < start + seconds:
        model.run(inputs)
        runs += 1
    return runs * rows / (time.monotonic() - start)


def _different(model: TensorModel) -> int:
    """Return how many of 8 rows are answered otherwise in one run than alone."""
    inputs = model.example(8)
    together = model.run(inputs)
    count = 0
    for index in range(8):
        alone = model.run({name: value[index : index + 1] for name, value in inputs.items()})
        good = [close(value, together[name][index : index + 1], model.plan.precision) for name, value in alone.items()]
        count += not all(good)
    return count
