"""A task from a recipe's values: `{name: image_classification, label_smoothing: 0.1}`.

The settings of a task are the arguments of its class, checked by their annotations as strictly as a config's.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from deepseek.errors import ConfigError, did_you_mean
from deepseek.registry import TASKS, resolve
from deepseek.tasks.task import Task


def build_task(values: Mapping[str, Any] | str) -> Task:
    """Return the task that `values` describe: its `name`, as in `deepseek.registry.TASKS`, and its settings.

    Raises ConfigError for an unknown name or setting, with the nearest right one, and for a value of a wrong type.
    """
    settings = {"name": values} if isinstance(values, str) else dict(values)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("a task needs a name", found=repr(name), wanted=f"one of {', '.join(sorted(TASKS))}")
    kind = cast(type, resolve(TASKS, name, "task"))
    known = task_settings(name)
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"the task {name} has no setting {key!r}",
                fix=did_you_mean(key, known) if known else "leave it out: this task has no settings",
            )
        settings[key] = _checked(name, key, value, known[key])
    return cast(Task, kind(**settings))


def task_settings(name: str) -> dict[str, Any]:
    """Return the settings of the task `name` with their types. Raises ConfigError for an unknown task."""
    kind = cast(type, resolve(TASKS, name, "task"))
    hints = typing.get_type_hints(inspect.getattr_static(kind, "__init__"))
    return {key: hints.get(key, Any) for key in inspect.signature(kind).parameters}


def _checked(task: str, key: str, value: Any, hint: Any) -> Any:
    """Return the value as the type asks for it: a mapping becomes the named tuple that a setting is."""
    try:
        strict = TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:  # the type brings a config of its own
        strict = TypeAdapter(hint)
    try:
        return strict.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *(str(part) for part in first["loc"] if isinstance(part, str) and part in _keys(value))])
        raise ConfigError(f"{where} of the task {task} is wrong: {first['msg']}", found=repr(first["input"])) from None


def _keys(value: Any) -> list[str]:
    return [str(key) for key in value] if isinstance(value, Mapping) else []
