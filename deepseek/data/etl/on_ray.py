"""Tasks on Ray Data (extra [cluster]): each is a row of a data set, done by `map_batches`.

The tasks write the same files as elsewhere, so what Ray moves is only what they are and what they counted, and its
order of work changes nothing. Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map_batches.html
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from deepseek.data.etl.task import Job, Task, do_task
from deepseek.errors import DeepSeekError
from deepseek.lazy import require

Result = tuple[int, dict[str, Any]]


def run_ray(job: Job, tasks: Sequence[Task], workers: int | None) -> Iterator[Result]:
    """Yield (number of a task, what it did) as they are done. Raises what the first task that fails raises.

    `workers` bounds how many run at once. Without Ray raises MissingExtraError.
    """
    data = require("ray.data", "cluster")
    plans = [{"task": pickle.dumps(task)} for task in tasks]
    compute = data.TaskPoolStrategy(size=workers)
    done = data.from_items(plans, override_num_blocks=len(plans)).map_batches(
        _Work(job), batch_size=1, compute=compute, batch_format="numpy", udf_modifying_row_count=False
    )
    for row in done.iter_rows():
        number, values, error = pickle.loads(row["result"])  # noqa: S301  made by this program's own workers
        if error is not None:
            raise error
        yield number, values


class started:
    """A `with` block in which Ray runs: the one that is there, or one of this process that ends with the block."""

    def __init__(self, workers: int | None) -> None:
        self._ray = require("ray", "cluster")
        self._workers = workers
        self._ours = False

    def __enter__(self) -> None:
        if not self._ray.is_initialized():
            self._ray.init(num_cpus=self._workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            self._ours = True
        self._ray.data.DataContext.get_current().enable_progress_bars = False

    def __exit__(self, *_: Any) -> None:
        if self._ours:
            self._ray.shutdown()


class _Work:
    """Does the tasks of a batch; an error is a value, so that Ray does not try again what can't succeed."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for data in batch["task"]:
            task = pickle.loads(data)  # noqa: S301  made by this program's own driver
            try:
                results.append(pickle.dumps((task.number, do_task(self._job, task), None)))
            except DeepSeekError as error:
                results.append(pickle.dumps((task.number, {}, error)))
        return {"result": results}
