"""`deepseek new`: a recipe to begin with for each task, every line explained."""

from __future__ import annotations

import re
from json import dumps

from deepseek.errors import ConfigError, did_you_mean
from deepseek.road.quickstart import template

NEW = {
    "classification": "new-table",
    "detection": "new-detection",
    "image_classification": "new-images",
    "language_modeling": "new",
    "segmentation": "new-segmentation",
    "speech_recognition": "new-speech",
}
"""The tasks that have a recipe to begin with, and its template."""


def new_recipe(task: str, name: str, data: str) -> str:
    """Return the text of a recipe for `task`, with a run's name and the path of the data.

    Raises ConfigError for a task without one, and for data that are missing.
    """
    if task not in NEW:
        raise ConfigError(f"there is no recipe to begin with for {task!r}", fix=did_you_mean(task, NEW))
    if task != "language_modeling" and data == "python-docs":
        raise ConfigError(f"the task {task} needs data of yours", fix="name them: --data PATH")
    values = {"NAME": name, "DATA": dumps(data, ensure_ascii=False)}
    return re.sub("NAME|DATA", lambda match: values[match[0]], template(NEW[task]))
