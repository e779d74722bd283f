"""What a task did, or why it could not, as bytes that any process can open.

Errors cross as their parts: exceptions with more arguments than one don't survive pickling. Not here: doing a task
(`task`).
"""

from __future__ import annotations

import importlib
import pickle
import traceback
from typing import Any

from deepseek.data.etl.task import Job, Task, do_task
from deepseek.errors import DeepSeekError

Result = tuple[int, dict[str, Any]]


def attempt(job: Job, task: Task) -> bytes:
    """Do a task; return what it did, or its error, for `opened`."""
    try:
        return pickle.dumps((task.number, do_task(job, task), None))
    except Exception as error:
        return pickle.dumps((task.number, {}, _parts(error)))


def opened(data: bytes) -> Result:
    """Return (number of the task, what it did). Raises the error that ended it."""
    number, values, error = pickle.loads(data)  # noqa: S301  made by this program's own workers
    if error is not None:
        raise _rebuilt(error)
    return number, values


def _parts(error: Exception) -> dict[str, Any]:
    if not isinstance(error, DeepSeekError):
        return {"text": "".join(traceback.format_exception(error))[-4000:]}
    extra = {name: getattr(error, name) for name in ("errno", "package", "extra") if hasattr(error, name)}
    shown = {name: None if value is None else str(value) for name, value in vars(error).items() if name not in extra}
    return {"class": type(error).__name__, **shown, **extra}


def _rebuilt(parts: dict[str, Any]) -> Exception:
    if "text" in parts:
        return RuntimeError(f"a worker failed:\n{parts['text']}")
    kind = getattr(importlib.import_module("deepseek.errors"), parts["class"])
    if "package" in parts:
        made: Exception = kind(parts["package"], parts["extra"])
        return made
    told = kind(parts["problem"], found=parts["found"], wanted=parts["wanted"], fix=parts["fix"])
    if parts.get("errno") is not None:
        told.errno = parts["errno"]
    made = told
    return made
