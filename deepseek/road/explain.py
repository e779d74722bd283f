"""What `deepseek explain` says of the settings that name something: tasks, readers, stages of a pipeline.

Not here: settings that are fields of a config (`deepseek.config.explain`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from deepseek.data.readers.table import READERS
from deepseek.errors import ConfigError
from deepseek.registry import STAGES, TASKS, resolve

NAMED: Mapping[str, tuple[Mapping[str, str], str, int]] = {
    "data.pipeline": (STAGES, "stage", 0),
    "data.reader": (READERS, "kind of data set", 1),
    "task": (TASKS, "task", 0),
}
"""For each setting its names, what they are called, and how many first arguments are not settings."""


def explain_name(key: str) -> str | None:
    """Return what `key` (task, task.detection, data.reader.csv, data.pipeline.Resize) stands for; None for other keys.

    Raises ConfigError for an unknown name.
    """
    for section, (table, kind, skipped) in NAMED.items():
        if key == section:
            lines = [f"  {name}: {_first_sentence(resolve(table, name, kind))}" for name in table]
            return "\n".join(
                [f"{section}: one of", *lines, f"  (the settings of one: deepseek explain {section}.NAME)"]
            )
        if key.startswith(f"{section}."):
            name, _, rest = key.removeprefix(f"{section}.").partition(".")
            return _one(f"{section}.{name}", resolve(table, name, kind), skipped, rest)
    return None


def _one(title: str, made: Any, skipped: int, setting: str) -> str:
    settings = list(inspect.signature(made).parameters.values())[skipped:]
    if setting and setting not in {one.name for one in settings}:
        raise ConfigError(
            f"{title} has no setting '{setting}'", wanted=", ".join(one.name for one in settings) or "none"
        )
    lines = [title, *(f"  {line}".rstrip() for line in (inspect.getdoc(made) or "").splitlines())]
    module = inspect.getdoc(inspect.getmodule(made)) or ""
    if "Batches: " in module and title.startswith("task."):
        batches = " ".join(module.partition("Batches: ")[2].partition("\n\n")[0].split())
        lines += ["", f"  Batches: {batches}"]
    lines += ["", "  settings:" if settings else "  no settings"]
    return "\n".join([*lines, *(f"    {_described(one)}" for one in settings)])


def _described(setting: inspect.Parameter) -> str:
    default = "required" if setting.default is setting.empty else f"default {_plain(setting.default)}"
    hint = "" if setting.annotation is setting.empty else f": {str(setting.annotation).removeprefix('typing.')}"
    return f"{setting.name}{hint}, {default}"


def _plain(value: object) -> str:
    """Return a value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _first_sentence(made: object) -> str:
    text = " ".join((inspect.getdoc(made) or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")
