"""One form of one case: made, or timed in a process of its own and compared with eager FP32.

`python -m benchmarks.compress_cases.run CASE FORM BATCH FOLDER RESULT`; BATCH 0 only makes the form's files. A toy is
`CASE:toy`. The value is the median of a call's milliseconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.compress_cases.forms import FORMS
from benchmarks.compress_cases.models import CASES, Case

SECONDS, LEAST, MOST, WARM_UP = 6.0, 7, 200, 3


def case_of(name: str) -> Case:
    """Return a case by its name, in its toy size for `NAME:toy`."""
    base, _, size = name.partition(":")
    return CASES[base].toy() if size == "toy" else CASES[base]


def make(case: Case, form: str, folder: Path) -> dict[str, object]:
    """Write the form's files, unless they are there."""
    chosen = FORMS[form]
    if chosen.file is None or not (folder / chosen.file).exists():
        chosen.make(case, folder)
    size = chosen.bytes(folder)
    return {"value": 1.0, "outputs": {} if size is None else {"bytes": float(size)}, "details": {}}


def timed(case: Case, form: str, batch: int, folder: Path, seconds: float = SECONDS) -> dict[str, object]:
    """Time the form at a batch size; `snr_db` and `cosine` tell how near its answer is to eager FP32's."""
    inputs = case.batch(batch)
    wanted = case.answer(case.model(), inputs).double()
    run = FORMS[form].open(case, folder, inputs)
    for _ in range(WARM_UP):
        found = run(inputs).double()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or (time.perf_counter() < end and len(times) < MOST):
        start = time.perf_counter()
        run(inputs)
        times.append((time.perf_counter() - start) * 1e3)
    noise = float((wanted - found).square().sum())
    ratio = float(wanted.square().sum()) / max(noise, 1e-20)
    cosine = float(torch.nn.functional.cosine_similarity(wanted.flatten(), found.flatten(), dim=0))
    outputs = {"snr_db": 10 * float(torch.tensor(ratio).log10()), "cosine": cosine, "least_ms": min(times)}
    return {"value": statistics.median(times), "outputs": outputs, "details": {"times_ms": times}}


def main(arguments: list[str]) -> None:
    """Run as the module's text says."""
    name, form, batch, folder, result = arguments
    torch.set_num_threads(torch.get_num_threads())  # as OMP_NUM_THREADS says, for pools that start later too
    case, place = case_of(name), Path(folder)
    report = timed(case, form, int(batch), place) if int(batch) else make(case, form, place)
    Path(result).write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
