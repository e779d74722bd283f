"""`verify_trainer`: does training do what it should, on this model, task and data? A table of checks with numbers.

Each check trains copies of the model for a few steps through the same Trainer as a real run, and holds two runs against
each other that must agree. The model given is not changed. Not here: what is checked (`verify_*.py` beside this file),
runs on several devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from deepseek.errors import DataError
from deepseek.tasks.task import Task
from deepseek.train.batches import as_stream
from deepseek.train.config import TrainConfig
from deepseek.train.verifying.batching import check_accumulation
from deepseek.train.verifying.case import VerifyCase, random_kept
from deepseek.train.verifying.data import check_first_loss, check_leak, check_order, check_schedule
from deepseek.train.verifying.gradient import check_gradient
from deepseek.train.verifying.numbers import check_compiled, check_precision
from deepseek.train.verifying.report import Finding, VerifyReport
from deepseek.train.verifying.runs import check_overfit, check_resume, check_same_seed

Say = Callable[[str], None]


def verify_trainer(
    model: nn.Module | Callable[[], nn.Module],
    task: Task,
    batches: Any,
    config: TrainConfig | None = None,
    *,
    validation: Any = None,
    steps: int = 6,
    time_limit: float = 300.0,
    say: Say | None = None,
    backend: str = "inductor",
) -> VerifyReport:
    """Check a training set-up and return the findings.

    `model`, or a function that builds it (for one that can't be copied); `batches` as for `Trainer`: a list, a loader,
    anything iterable. Runs are of `steps` steps. Once `time_limit` seconds are over, the checks that are left are
    skipped. `say` gets a line as each check begins; `backend` is what `torch.compile` uses.
    Raises DataError where there is no batch, ModelError for a model that can't be copied.
    """
    build = None if isinstance(model, nn.Module) else model
    stream = as_stream(batches, (config or TrainConfig()).seed)
    case = VerifyCase(
        model if isinstance(model, nn.Module) else model(),
        task,
        list(islice(stream.iterate(0), min(len(stream), max(2, steps)))),
        config or TrainConfig(),
        steps=max(2, steps),
        build=build,
        validation=validation,
        stream=stream,
    )
    if sum(task.count(batch) for batch in case.batches) == 0:
        raise DataError("the batches have no target", wanted="at least one in the first few")
    with random_kept():
        return _run(case, _checks(case, backend), time_limit, say or (lambda line: None))


Check = Callable[[float], Finding]
"""Takes the seconds that are left."""


def _checks(case: VerifyCase, backend: str) -> list[tuple[str, Check]]:
    """Return the checks, what costs little first."""
    plain: list[tuple[str, Callable[[VerifyCase], Finding]]] = [
        ("data order", check_order),
        ("train/val overlap", check_leak),
        ("learning rate", check_schedule),
        ("first loss", check_first_loss),
        ("resume", check_resume),
        ("same seed", check_same_seed),
        ("overfit one batch", check_overfit),
        ("accumulation", check_accumulation),
        ("precision", check_precision),
        ("gradient", check_gradient),
    ]
    checks: list[tuple[str, Check]] = [(name, lambda left, check=check: check(case)) for name, check in plain]  # type: ignore[misc]
    return [*checks, ("compiled", lambda left: check_compiled(case, backend, left))]


def _run(case: VerifyCase, checks: Iterable[tuple[str, Check]], time_limit: float, say: Say) -> VerifyReport:
    report, begin = VerifyReport(), time.monotonic()
    for name, check in checks:
        start = time.monotonic()
        left = time_limit - (start - begin)
        if left <= 0:
            report.findings.append(Finding(name, "skipped", f"the time limit of {time_limit:g} s was over"))
            continue
        say(f"{name} ...")
        try:
            finding = check(left)
        except Exception as error:  # what breaks a check would break a run: a finding, and the others go on
            first = (str(error).splitlines() or [""])[0][:200]
            finding = Finding(name, "fail", f"it stopped with {type(error).__name__}: {first}")
        seconds = round(time.monotonic() - start, 2)
        report.findings.append(replace(finding, seconds=seconds))
    return report
