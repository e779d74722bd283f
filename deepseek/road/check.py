"""What is wrong with the task and data sections of a recipe, told with `file:line` before any data is read.

Not here: what only the data can tell (`sample_data`, `fit_model`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deepseek.data.pipeline import Pipeline
from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.data.readers.table import READERS
from deepseek.errors import ConfigError, did_you_mean
from deepseek.registry import resolve
from deepseek.road.data_config import DataConfig
from deepseek.tasks.build import build_task
from deepseek.yaml_source import Location, YamlSource

_FOR_SAMPLES = ("reader", "rename", "classes", "texts", "split_by", "pipeline", "num_workers", "length_buckets")
_FOR_TEXT = ("tokenizer", "vocab_size", "allow_smaller_vocab")
TOKENIZER_STAGES = ("MaskTokens", "Tokenize")
"""The stages that take the run's own tokenizer where they name none."""
_NOT_YET = "tokenizer.json"  # stands for the tokenizer that the run will have


def check_task(values: Mapping[str, Any], source: YamlSource) -> None:
    """Raise ConfigError for an unknown task or setting, or a setting's wrong value."""
    with located(source, ("task", "name"), [("task", key) for key in values]):
        build_task(values)


def check_data_section(data: DataConfig, language: bool, source: YamlSource) -> None:
    """Raise ConfigError for settings that the task does not use, readers, reader options and stages that are none."""
    has_tokenizer = any(stage.get("name") in TOKENIZER_STAGES for stage in data.pipeline)
    without_use = _FOR_SAMPLES if language else () if has_tokenizer else _FOR_TEXT
    for name in without_use:
        if getattr(data, name) != type(data).model_fields[name].get_default(call_default_factory=True):
            raise ConfigError(
                f"{source.where(('data', name))}: data.{name} has no effect here",
                found="the task language_modeling" if language else "no Tokenize in data.pipeline",
                wanted=f"data.{name} with another task" if language else "a stage that makes tokens of text",
                fix="name the task (deepseek explain task), or leave the setting out" if language else None,
            )
    _check_reader(data.reader, source)
    _check_pipeline(data.pipeline, source)


def _check_reader(values: Mapping[str, Any], source: YamlSource) -> None:
    kind = values.get("kind")
    if kind is None:
        return
    with located(source, ("data", "reader", "kind")):
        reader: Any = resolve(READERS, str(kind), "kind of data set")
    known = list(inspect.signature(reader).parameters)[1:]
    for name in values:
        if name != "kind" and name not in known:
            raise ConfigError(
                f"{source.where(('data', 'reader', name))}: the reader '{kind}' has no option '{name}'",
                fix=did_you_mean(name, known) if known else "it has no options",
            )


def _check_pipeline(stages: list[dict[str, Any]], source: YamlSource) -> None:
    made: list[Stage | StageGroup] = []
    for place, values in enumerate(stages):
        here: Location = ("data", "pipeline", place)
        with located(source, here, [(*here, key) for key in values]):
            try:
                made += Pipeline.from_config([with_tokenizer(values, _NOT_YET)]).written
            except TypeError as error:
                raise ConfigError(f"{values.get('name')} can't be made of these settings", found=error) from None
    with located(source, ("data", "pipeline")):
        Pipeline(made)


def with_tokenizer(stage: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the stage's settings; one that needs a tokenizer and names none gets the one at `path`."""
    return {**stage, "tokenizer": path} if wants_tokenizer(stage) else {**stage}


def wants_tokenizer(stage: Mapping[str, Any]) -> bool:
    """Return whether a stage takes the run's own tokenizer."""
    return stage.get("name") in TOKENIZER_STAGES and "tokenizer" not in stage


@contextmanager
def located(source: YamlSource, location: Location, keys: Sequence[Location] = ()) -> Iterator[None]:
    """Put `file:line` before a ConfigError that has none: of the key of `keys` that it names, else of `location`."""
    try:
        yield
    except ConfigError as error:
        if error.problem.startswith(source.name):
            raise
        named = [key for key in keys if repr(str(key[-1])) in error.problem or repr(key[-1]) in error.problem]
        where = source.where(named[0] if named else location)
        raise ConfigError(f"{where}: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix) from None
