"""The data section of a recipe as datasets: read, split, classes settled, stages learned, ready to give batches.

Everything that is learned (tokenizer, alphabet, means of columns) comes from the training part alone.
Not here: language models' text (`deepseek.train.text_data`), and holding data against the model (`fit_model`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.data import DistributedDataset, Pipeline, Tokenizer
from deepseek.data.masking import MaskTokens
from deepseek.data.pipeline.pipeline import OnError
from deepseek.data.pipeline.stage import ROADS, Domain, LearnedStage, Sample, Stage, StageGroup
from deepseek.data.spell_text import SpellText
from deepseek.errors import DataError
from deepseek.road.check import wants_tokenizer, with_tokenizer
from deepseek.road.data_config import DataConfig
from deepseek.road.recipe import Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.sample_source import Form, Relabeling, SampleSource, classes_of_reader, open_data, values_of
from deepseek.road.split import Split, split_rows
from deepseek.train.text_data import cache_folder

logger = logging.getLogger("deepseek.road")

_VOCABULARY = 8192


@dataclass
class SampleData:
    """Datasets of a run. `pipeline` is the one for training; `class_names` is empty where there are no classes."""

    train: DistributedDataset
    val: DistributedDataset | None
    plain: DistributedDataset
    """The training samples, shuffled but not augmented: as a served model sees them, so what to calibrate with."""
    pipeline: Pipeline
    class_names: tuple[str, ...]
    tokenizer: Tokenizer | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> DistributedDataset:
        """What is measured on: the validation part, or where there is none the training part in its order."""
        return self.val if self.val is not None else self.train


def prepare_samples(recipe: Recipe, run: RunFolder) -> SampleData:
    """Open and split the data, learn what there is to learn. Raises ConfigError or DataError.

    A run that has its tokenizer already keeps it.
    """
    start, data = time.perf_counter(), recipe.data
    reader = open_data(data.train, data)
    if len(reader) == 0:
        raise DataError(f"there are no samples in {data.train}")
    relabeling = Relabeling(classes_of_reader(reader), data.classes)
    form = _form(data)
    fraction = recipe.train.val_fraction if data.val is None else 0.0
    groups = values_of(reader, data.split_by) if data.split_by is not None and fraction > 0 else None
    split = split_rows(len(reader), fraction, recipe.train.seed, groups)
    source = SampleSource(reader, split.train, data, relabeling, form)
    held: SampleSource | None = None
    if data.val is not None:
        other = open_data(data.val, data)
        classes = _same_classes(classes_of_reader(other), relabeling, data)
        held = SampleSource(other, np.arange(len(other)), data, classes, form)
    elif len(split.held_out):
        held = SampleSource(reader, split.held_out, data, relabeling, form)
    tokenizer, path = _tokenizer(data, source, run)
    pipeline = learned_pipeline(data.pipeline, source, path, recipe.train.seed, recipe.train.on_error)
    whole = SampleData(
        _dataset(recipe, source, pipeline),
        None if held is None else _dataset(recipe, held, pipeline, held_out=True),
        _dataset(recipe, source, pipeline.without_augmentation()),
        pipeline,
        relabeling.names,
        tokenizer,
    )
    whole.facts = _facts(recipe, whole, source, held, split)
    whole.facts["seconds"] = time.perf_counter() - start
    return whole


def held_out_samples(recipe: Recipe, pipeline: Sequence[dict[str, Any]], class_names: Sequence[str]) -> SampleData:
    """Return all samples of `recipe.data.train` to measure a trained model on, by the pipeline of its bundle."""
    data = recipe.data
    reader = open_data(data.train, data)
    relabeling = _same_classes(classes_of_reader(reader), Relabeling(class_names, {}), data)
    source = SampleSource(reader, np.arange(len(reader)), data, relabeling, _form(data))
    made = Pipeline.from_config(pipeline, seed=recipe.train.seed, on_error=recipe.train.on_error)
    dataset = _dataset(recipe, source, made, held_out=True)
    return SampleData(dataset, dataset, dataset, made, relabeling.names, None)


def learned_pipeline(
    stages: Sequence[dict[str, Any]],
    source: SampleSource,
    tokenizer: str | None,
    seed: int,
    on_error: OnError = "raise",
) -> Pipeline:
    """Return the pipeline whose learning stages know the training samples, as the stages before them leave them without
    augmentation. Raises DataError.
    """
    made: list[Stage | StageGroup] = []
    for values in stages:
        for one in Pipeline.from_config([with_tokenizer(values, tokenizer or "")]).written:
            if isinstance(one, LearnedStage) and not one.is_learned:
                one = one.learned(_before(one, made, source, on_error))
            made.append(one)
    return Pipeline(made, seed=seed, on_error=on_error)


def _before(
    stage: LearnedStage, made: Sequence[Stage | StageGroup], source: SampleSource, on_error: OnError
) -> Iterable[Sample]:
    """Return the samples in the domain that a stage learns in, read when they are asked for."""
    road = next((road for road in ROADS if stage.takes in road), (stage.takes,))
    if stage.takes == road[0]:
        return source
    on_road = [one for one in made if all(step.takes in road for step in Pipeline([one]).steps)]
    pipeline = Pipeline(on_road, on_error=on_error).without_augmentation()
    return (sample for one in source for sample in pipeline.apply([one]))


def _form(data: DataConfig) -> Form:
    """Return what the pipeline's stages need of the samples."""
    stages = Pipeline.from_config([with_tokenizer(values, "-") for values in data.pipeline]).written
    return Form(
        as_rows=any(isinstance(one, Stage) and one.takes == Domain.ROW for one in stages),
        makes_labels=any(isinstance(one, SpellText | MaskTokens) or getattr(one, "labels", False) for one in stages),
    )


def _same_classes(found: tuple[str, ...], known: Relabeling, data: DataConfig) -> Relabeling:
    """Return the relabeling of other data of the same classes, by their names. Raises DataError for unknown ones."""
    fresh = Relabeling(found, data.classes if set(data.classes) & {*found, "*"} else {})
    unknown = [name for name in fresh.names if name not in known.names]
    if unknown:
        raise DataError(
            "the validation data have classes that the training data lack",
            found=", ".join(unknown)[:200],
            wanted=", ".join(known.names)[:200],
        )
    fresh.ids = np.array([known.names.index(fresh.names[one]) for one in fresh.ids], dtype=np.int64)
    fresh.names = known.names
    return fresh


def _dataset(recipe: Recipe, source: SampleSource, pipeline: Pipeline, *, held_out: bool = False) -> DistributedDataset:
    data = recipe.data
    batch_size = recipe.train.batch_size
    return DistributedDataset(
        source,
        min(batch_size, len(source)),
        data.num_workers,
        pipeline.without_augmentation() if held_out else pipeline,
        seed=recipe.train.seed,
        shuffle=not held_out,
        length_buckets=0 if held_out else data.length_buckets,
        drop_last=not held_out and len(source) > batch_size,
        on_error=recipe.train.on_error,
    )


def _tokenizer(data: DataConfig, source: SampleSource, run: RunFolder) -> tuple[Tokenizer | None, str | None]:
    """Return the tokenizer that Tokenize uses where it names none, and where workers find it."""
    if not any(map(wants_tokenizer, data.pipeline)):
        return None, None
    stored = run.path / "tokenizer.json"
    if stored.is_file():
        tokenizer = Tokenizer.load(stored)
    elif data.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(data.tokenizer)
    else:
        size = data.vocab_size or _VOCABULARY
        allowed = data.allow_smaller_vocab or data.vocab_size is None
        tokenizer = Tokenizer.train((_text_of(sample) for sample in source), size, allow_smaller=allowed)
    masks = [str(one.get("mask_token", "[MASK]")) for one in data.pipeline if one.get("name") == "MaskTokens"]
    missing = [mask for mask in masks if mask not in tokenizer.special_tokens]
    tokenizer = tokenizer.with_special_tokens(missing) if missing else tokenizer
    path = cache_folder() / "tokenizers" / f"{tokenizer.sha256}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
    return tokenizer, str(path)


def _text_of(sample: dict[str, Any]) -> str:
    text = sample.get("text")
    if not isinstance(text, str):
        raise DataError(
            "the samples have no text to train a tokenizer on",
            found=", ".join(sorted(sample)),
            wanted="text",
            fix="rename the value that holds it: data.rename {review: text}",
        )
    return text


def _facts(
    recipe: Recipe, data: SampleData, source: SampleSource, held: SampleSource | None, split: Split
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": recipe.data.train,
        "reader": type(source.reader).__name__,
        "train_samples": len(source),
        "val_samples": 0 if held is None else len(held),
        "classes": list(data.class_names),
    }
    if data.tokenizer is not None:
        facts["vocab_size"] = data.tokenizer.vocab_size
    if recipe.data.val is not None:
        facts["split"] = {"by": "file", "val": recipe.data.val}
    elif held is not None:
        facts["split"] = {
            "by": recipe.data.split_by or "sample",
            "seed": recipe.train.seed,
            "fraction": recipe.train.val_fraction,
            "held_out": list(split.groups),
            "digest": split.digest,
        }
    report = getattr(source.reader, "report", None)
    skipped = getattr(report, "skipped", 0)
    if skipped:
        facts["skipped"] = skipped
        logger.warning("skipped %d bad rows of %s", skipped, Path(recipe.data.train).name)
    return facts
