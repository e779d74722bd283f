"""A recipe's model, task and data held against one another before training: sizes filled in, one small batch tried.

What the data say (classes, channels, columns, tokens) goes into the model's config where the recipe leaves it out;
where it says something else, that is an error. Not here: whether the run fits in memory (the trainer refuses then).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.data.audio.whisper_features import WhisperFeatures
from deepseek.data.spell_text import SpellText
from deepseek.data.table_columns import TableColumns
from deepseek.errors import ConfigError, DataError, DeepSeekError
from deepseek.models.factory import build, model_config
from deepseek.road.recipe import Recipe
from deepseek.road.sample_data import SampleData
from deepseek.tasks.build import build_task
from deepseek.tasks.task import Task

_LARGE = 500_000_000  # weights of a model that is not built for a trial

_AT_LEAST = frozenset({"vocab_size", "decoder.vocab_size", "max_frames", "audio.max_frames"})
_ONLY_FILLED = frozenset({"image_size", "latent_size"})


def fitted_config(recipe: Recipe, data: SampleData) -> Config:
    """Return the model's config with what the data say. Raises ConfigError where the recipe says otherwise."""
    name, config = model_config(recipe.model)
    given = dict(recipe.model)
    changes: dict[str, Any] = {}
    for key, value in sizes_of(data, first_batch(data, 2)).items():
        section, _, leaf = key.rpartition(".")
        owner: Any = getattr(config, section, None) if section else config
        if not isinstance(owner, Config) or leaf not in type(owner).model_fields:
            continue
        named = given.get(section, {}) if section else given
        if not isinstance(named, Mapping) or leaf not in named:
            changes.setdefault(section, {})[leaf] = value
        elif key not in _ONLY_FILLED:
            _check_size(name, key, named[leaf], value)
    own = changes.pop("", {})
    inner = {section: getattr(config, section).replace(**values) for section, values in changes.items()}
    return config.replace(**own, **inner)


def sizes_of(data: SampleData, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the data say about a model, by the names that templates' configs use."""
    sizes: dict[str, Any] = {}
    if data.class_names and ("labels" in batch or "boxes" in batch) and "masks" not in batch:
        sizes |= {"num_labels": len(data.class_names), "num_classes": len(data.class_names)}
    if data.tokenizer is not None:
        sizes["vocab_size"] = data.tokenizer.vocab_size
    for stage in data.pipeline.steps:
        if isinstance(stage, SpellText):
            sizes["decoder.vocab_size"] = stage.vocab_size
        if isinstance(stage, TableColumns) and not stage.one_hot:
            sizes |= {"num_numeric": stage.width, "cardinalities": stage.cardinalities}
    pixels, features = batch.get("pixel_values"), batch.get("features")
    if isinstance(pixels, Tensor) and pixels.dim() >= 4:
        sizes |= {"num_channels": pixels.shape[1], "image_size": pixels.shape[-1], "latent_size": pixels.shape[-1]}
    if isinstance(features, Tensor):
        sizes["input_shape"] = list(features.shape[1:])
    spectra = batch.get("input_features")
    if isinstance(spectra, Tensor):
        bands_first = any(isinstance(stage, WhisperFeatures) for stage in data.pipeline.steps)
        bands = spectra.shape[1 if bands_first else -1]
        sizes |= {"encoder.num_mels": bands, "num_mels": bands, "audio.num_mels": bands}
        if bands_first:
            sizes |= {"max_frames": spectra.shape[-1], "audio.max_frames": spectra.shape[-1]}
    return sizes


def first_batch(data: SampleData, samples: int) -> dict[str, Any]:
    """Return a batch of the first training samples, through the whole pipeline. Raises DataError."""
    source = data.train.reader
    return data.pipeline([{**source.read(row), "index": row} for row in range(min(samples, len(source)))])


def try_once(config: Config, task_values: Mapping[str, Any], data: SampleData) -> None:
    """Put two samples through model and task on the CPU. Raises ConfigError where they do not fit together.

    Random numbers are left as they were. Models of more than 500 million weights are not tried.
    """
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build(config).parameters())
    if weights > _LARGE:
        return
    task, batch = build_task(task_values), first_batch(data, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config)
        try:
            with torch.no_grad():
                task.loss(model, copy.copy(batch))
        except (DeepSeekError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _explained(error, model, task, batch) from error


def _check_size(model: str, key: str, given: Any, wanted: Any) -> None:
    fits = (
        given >= wanted if key in _AT_LEAST else list(given) == wanted if isinstance(wanted, list) else given == wanted
    )
    if not fits:
        at_least = "at least " if key in _AT_LEAST else ""
        raise ConfigError(
            f"model.{key} of the {model} does not fit the data",
            found=given,
            wanted=f"{at_least}{wanted}",
            fix=f"leave model.{key} out; it is taken from the data then",
        )


def _explained(error: Exception, model: nn.Module, task: Task, batch: Mapping[str, Any]) -> ConfigError:
    """Return what one can do about it, for an error of the trial."""
    found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items() if isinstance(value, Tensor))
    wanted = _batches_of(task)
    if isinstance(error, KeyError):
        return ConfigError(
            f"the batches lack {error}, which the task {task.name} needs",
            found=found,
            wanted=wanted,
            fix="make it by a stage of data.pipeline, or rename the value that holds it (data.rename)",
        )
    if isinstance(error, DataError):
        return ConfigError(error.problem, found=error.found, wanted=error.wanted, fix=error.fix)
    reason = error.problem if isinstance(error, DeepSeekError) else f"{type(error).__name__}: {_first_line(error)}"
    detail = f"{error.found}; a batch of {found}" if isinstance(error, DeepSeekError) and error.found else found
    return ConfigError(
        f"the model {type(model).__name__} can't do the task {task.name} on these data: {reason}",
        found=detail,
        wanted=error.wanted if isinstance(error, DeepSeekError) and error.wanted else wanted,
        fix=(error.fix if isinstance(error, DeepSeekError) else None)
        or "choose a model for this task (deepseek models), or change data.pipeline",
    )


def _batches_of(task: Task) -> str:
    """Return what the task's module says about its batches."""
    text = " ".join((sys.modules[type(task).__module__].__doc__ or "").split())
    _, found, rest = text.partition("Batches: ")
    return f"batches of {rest.split('. ')[0].rstrip('.')}" if found else "what the task's documentation names"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else ""
