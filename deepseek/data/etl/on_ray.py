"""Tasks on Ray Data (extra [cluster]): each is a row of a data set, done by `map_batches`.

The tasks write the same files as elsewhere, so what Ray moves is only what they are and what they counted, and its
order of work changes nothing. Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map_batches.html
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from deepseek.data.etl.outcome import Result, attempt, opened
from deepseek.data.etl.task import Job, Task
from deepseek.lazy import require


def run_ray(job: Job, tasks: Sequence[Task], workers: int | None) -> Iterator[Result]:
    """Yield (number of a task, what it did) as they are done. Raises what the first task that fails raises.

    `workers` bounds how many run at once. Without Ray raises MissingExtraError.
    """
    data = require("ray.data", "cluster")
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    compute = data.TaskPoolStrategy(size=None if workers is None else min(workers, len(tasks)))
    done = data.from_items(rows, override_num_blocks=len(rows))
    done = done.map_batches(_Work(job), batch_size=1, compute=compute, batch_format="numpy")
    with closing(done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0).__iter__()) as batches:
        for batch in batches:
            for result in batch["result"]:
                yield opened(result)


@contextmanager
def ray_running(workers: int | None) -> Iterator[None]:
    """Keep Ray running: the one that is there, or one of this process that ends with the block, with little noise."""
    ray = require("ray", "cluster")
    context = require("ray.data", "cluster").DataContext.get_current()
    log, bars = logging.getLogger("ray.data"), context.enable_progress_bars
    level, ours = log.level, not ray.is_initialized()
    if ours:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    log.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)
        if ours:
            ray.shutdown()


class _Work:
    """Does the tasks of a batch; an error is a value, so that Ray does not try again what can't succeed."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        tasks = [pickle.loads(data) for data in batch["task"]]  # noqa: S301  made by this program's own driver
        return {"result": [attempt(self._job, task) for task in tasks]}
