"""The stages of every task but language modelling: samples from a reader, through a pipeline, into batches.

Not here: what a task measures (`deepseek.tasks`), the pictures of the report (`exhibits`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from deepseek import bundle as bundles
from deepseek.bundle import Bundle
from deepseek.compress.config import CompressConfig
from deepseek.compress.search.either import compressed
from deepseek.data.spell_text import SpellText
from deepseek.errors import ConfigError
from deepseek.export.onnx_export import OnnxConfig, export_onnx
from deepseek.road.exhibits import exhibits_of
from deepseek.road.fit_model import fitted_config, try_once
from deepseek.road.profiling import profile_of
from deepseek.road.recipe import DataConfig, EvaluateConfig, Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.sample_data import SampleData, held_out_samples, prepare_samples
from deepseek.road.training import device_of, given_settings, record_training
from deepseek.tasks.build import build_task
from deepseek.tasks.task import Task, evaluate
from deepseek.train.config import TrainConfig
from deepseek.train.loop import take
from deepseek.train.trainer import Trainer


class SampleStages:
    """The stages of a model that learns from samples."""

    evaluated = ("evaluate", "examples")

    def check(self, recipe: Recipe) -> None:
        """Every task has every stage."""

    def data_stage(self, recipe: Recipe, run: RunFolder, *, resume: bool = False) -> SampleData:
        """Read and split the data, and try two samples on the model. Raises ConfigError or DataError."""
        data = prepare_samples(recipe, run)
        if resume:
            _check_same_split(run, data)
        try_once(fitted_config(recipe, data), recipe.task, data)
        return data

    def data_of(self, recipe: Recipe, bundle: Bundle) -> SampleData:
        """Return the recipe's data, split as they were for training."""
        return prepare_samples(recipe, RunFolder(bundle.path.parent))

    def foreign_data(self, bundle: Bundle, path: str, recipe: Recipe | None) -> SampleData:
        """Return all samples at `path`, read as the recipe says, by the bundle's own pipeline."""
        data = recipe.data.replace(train=path, val=None) if recipe is not None else DataConfig(train=path)
        if recipe is None:
            recipe = Recipe(data=data, model=bundle.config.model, task={"name": bundle.config.task})
            recipe = recipe.replace(data=data.replace(pipeline=bundle.config.pipeline), train=TrainConfig())
        return held_out_samples(recipe.replace(data=data), bundle.pipeline_stages, bundle.config.labels)

    def train_stage(self, recipe: Recipe, run: RunFolder, data: SampleData, *, resume: bool = False) -> bool:
        """Train, write checkpoints and the bundle with its classes and pipeline, record the numbers."""
        trainer = Trainer(
            model_config=fitted_config(recipe, data),
            train_dataset=data.train,
            val_dataset=data.val,
            task=_task_of(recipe.task, data),
            tokenizer=data.tokenizer,
            output_dir=run.path,
            **given_settings(recipe),
        )
        with data.train:
            result = trainer.train(resume=resume)
        record_training(run, trainer, result, unit="items")
        if not result.interrupted and trainer.model is not None:
            bundles.save(
                trainer.model,
                run.bundle,
                tokenizer=data.tokenizer,
                task=recipe.task_name,
                task_settings={key: value for key, value in recipe.task.items() if key != "name"},
                labels=data.class_names,
                pipeline=data.pipeline.without_augmentation().to_config(),
                profile=profile_of(trainer.model, data),
            )
        return result.interrupted

    def evaluate_stage(
        self, bundle: Bundle, data: SampleData, config: EvaluateConfig, run: RunFolder | None
    ) -> dict[str, Any]:
        """Return what the task measures on the data held back, beside what answers without a model reach."""
        task_values = {"name": bundle.config.task, **bundle.config.task_settings}
        task, device = _task_of(task_values, data), device_of(bundle.model)
        with data.held_out:
            figures = evaluate(bundle.model, take(data.held_out, config.max_batches), task, device)
            shown = exhibits_of(bundle.model, task, data, config)
        if run is not None:
            count = len(data.held_out.reader)
            run.record("evaluate", {"samples": count, "figures": figures, "baselines": shown.baselines})
            run.record("examples", shown.written(run.path))
        return {**figures, **{f"{name}, no model": value for name, value in shown.baselines.items()}}

    def compress_stage(
        self,
        bundle: Path,
        out: Path,
        data: SampleData,
        config: CompressConfig,
        say: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Write the bundle in a smaller form, measured on the data held back; return the table of its forms."""
        settings = bundles.load(bundle, device="cpu").config
        task = _task_of({"name": settings.task, **settings.task_settings}, data)
        with data.held_out:
            batches = list(take(data.held_out, config.max_batches))
        with data.plain:
            seen = list(take(data.plain, config.calibration_batches))
        if data.train is data.val:  # other data are only measured on
            return compressed(bundle, out, batches, config, calibration_data=seen, task=task, say=say)
        with data.train:
            return compressed(
                bundle, out, batches, config, calibration_data=seen, train_data=data.train, task=task, say=say
            )

    def export_stage(self, bundle: Bundle, path: Path, config: OnnxConfig) -> dict[str, Any]:
        """Write the ONNX file, checked by running it; return the checks."""
        return export_onnx(bundle.model, path, config=config).to_dict()

    def data_line(self, facts: dict[str, Any]) -> str:
        """Return how many samples and classes there are, and how they were split."""
        line = f"  {facts['train_samples']:,} samples to train, {facts['val_samples']:,} to validate"
        split = facts.get("split", {})
        if split.get("held_out"):
            line += f" (held back by {split['by']}: {', '.join(split['held_out'][:6])})"
        if facts["classes"]:
            names = facts["classes"]
            line += f"; {len(names)} classes: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        return line + (f"; vocabulary {facts['vocab_size']:,}" if "vocab_size" in facts else "")

    def train_line(self, results: dict[str, Any]) -> str:
        """Return size, steps, speed and loss."""
        train = results["train"]
        how = "compiled" if train["compiled"] else "eager"
        val = f", validation loss {train['val_loss']:.3f}" if train["val_loss"] is not None else ""
        return (
            f"  {results['model']['parameters'] / 1e6:.2f}M parameters, {train['steps']:,} steps in "
            f"{train['seconds']:.0f} s ({train['precision']}, {how}){val}"
        )

    def evaluate_line(self, numbers: dict[str, Any]) -> str:
        """Return the figures, each beside its baseline."""
        baselines = numbers["baselines"]
        shown = [
            f"{name} {value:.3f}" + (f" (without a model {baselines[name]:.3f})" if name in baselines else "")
            for name, value in numbers["figures"].items()
        ]
        return f"  on {numbers['samples']:,} samples held back: " + ", ".join(shown[:8])

    def next_steps(self, run: RunFolder) -> list[tuple[str, str]]:
        """Return the commands that measure the bundle on other data, and export it."""
        bundle = shlex.quote(str(run.bundle))
        return [("measure", f"deepseek evaluate {bundle} --data PATH"), ("export", f"deepseek export {bundle}")]


def _task_of(values: Mapping[str, Any], data: SampleData) -> Task:
    """Return the task; one that measures texts gets what spells them."""
    task: Any = build_task(values)
    spell = next((stage for stage in data.pipeline.steps if isinstance(stage, SpellText)), None)
    if spell is not None and hasattr(task, "to_text"):
        task.to_text = spell.spelled
    return cast(Task, task)


def _check_same_split(run: RunFolder, data: SampleData) -> None:
    """Raise ConfigError where another part is held back than when the run began: it would be trained on."""
    before = run.results.get("data", {}).get("split", {})
    found = data.facts.get("split", {})
    if before and before.get("digest") != found.get("digest"):
        raise ConfigError(
            f"the data changed since the run in {run.path} began: another part would be held back",
            found=f"{data.facts['train_samples']} samples to train, {data.facts['val_samples']} to validate",
            wanted=f"split {before.get('digest')} of {before.get('fraction')} with seed {before.get('seed')}",
            fix="put the data back as they were, or start a new run (--name)",
        )
