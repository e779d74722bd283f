"""`deepseek run recipe.yaml`: the whole road, stage after stage, each said aloud as it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.errors import ConfigError
from deepseek.files import folder_lock
from deepseek.report import render_report
from deepseek.road import language
from deepseek.road.recipe import EvaluateConfig, Recipe, read_recipe
from deepseek.road.run_folder import RunFolder
from deepseek.train.text_data import TextData
from deepseek.train.trainer import Trainer

Say = Callable[[str], None]


@dataclass
class Walk:
    """What a finished walk left."""

    run: RunFolder
    report: Path | None
    interrupted: bool
    seconds: float


def walk(recipe: Recipe, say: Say, *, resume: bool = False) -> Walk:
    """Walk the road of `recipe`; `say` gets a line at each stage. A finished run of that name is not overwritten.

    Raises ConfigError when the run folder holds another run, and what the stages raise; finished stages stay.
    """
    start = time.perf_counter()
    run = _begin(recipe, resume)
    trainer, text = _train(recipe, run, say, resume)
    if trainer.result is not None and trainer.result.interrupted:
        return Walk(run, None, True, time.perf_counter() - start)
    bundle = language.open_bundle(run.bundle)
    with stage(say, "evaluate"):
        language.evaluate_stage(bundle, text, recipe.evaluate or EvaluateConfig(), run)
        say(_evaluate_line(run.results["evaluate"]))
    if recipe.compress is not None:
        with stage(say, "compress"):
            language.compress_stage(run.bundle, run.compressed, text, recipe.compress, run)
            for line in compress_lines(run.results["compress"]):
                say(line)
    if recipe.export is not None:
        with stage(say, "export"):
            path = language.export_stage(bundle, recipe.export, run)
            say(_export_line(path, run.results["export"]))
    run.record("seconds", time.perf_counter() - start)
    return Walk(run, render_report(run.path), False, time.perf_counter() - start)


def train_only(recipe: Recipe, say: Say, *, resume: bool = False) -> Walk:
    """Do the stages data and train alone. Raises as `walk` does."""
    start = time.perf_counter()
    run = _begin(recipe, resume)
    trainer = _train(recipe, run, say, resume)[0]
    interrupted = trainer.result is not None and trainer.result.interrupted
    return Walk(run, None, interrupted, time.perf_counter() - start)


def _begin(recipe: Recipe, resume: bool) -> RunFolder:
    run = RunFolder(recipe.folder)
    _check_free(run, recipe, resume)
    with folder_lock(run.path):
        if not resume or not run.results:
            run.start(recipe.name, recipe)
    return run


def _train(recipe: Recipe, run: RunFolder, say: Say, resume: bool) -> tuple[Trainer, TextData]:
    with stage(say, "data"):
        text = language.data_stage(recipe, run)
        say(_data_line(run.results["data"]))
    with stage(say, "train"):
        trainer = language.train_stage(recipe, run, text, resume=resume)
        say(_train_line(run.results))
    return trainer, text


def recipe_of_run(path: Path) -> tuple[Recipe, RunFolder]:
    """Return the recipe and folder of a run that exists. Raises ConfigError for a folder that is none."""
    if not (path / "recipe.yaml").is_file():
        raise ConfigError(
            f"{path} is not a run folder", found="no recipe.yaml in it", wanted="a folder made by `deepseek run`"
        )
    recipe = read_recipe(path / "recipe.yaml")
    return recipe.replace(output_dir=str(path.parent), name=path.name), RunFolder(path)


@contextmanager
def stage(say: Say, name: str) -> Iterator[None]:
    """Say when a stage begins, and how long it took."""
    start = time.perf_counter()
    say(f"[bold]{name}[/bold]")
    yield
    say(f"  [dim]{time.perf_counter() - start:.1f} s[/dim]")


def compress_lines(table: dict[str, Any]) -> list[str]:
    """Return a line for each form of the model: size, perplexity, time."""
    return [
        f"  {row['form']:<18} {row['bytes'] / 1e6:7.1f} MB   perplexity {row['perplexity']:8.2f}   "
        f"first token {row['prefill_ms']:6.1f} ms   next {row['token_ms']['median']:6.2f} ms"
        for row in table["rows"]
    ]


def _check_free(run: RunFolder, recipe: Recipe, resume: bool) -> None:
    has_checkpoint = any((run.path / "checkpoints").glob("step_*"))
    if resume or not (run.bundle.exists() or has_checkpoint):
        return
    raise ConfigError(
        f"{run.path} holds a run already",
        found="a bundle" if run.bundle.exists() else "checkpoints of an unfinished run",
        fix=f"go on with --resume, give the run another name (--name), or remove {run.path}",
    )


def _data_line(facts: dict[str, Any]) -> str:
    return (
        f"  {facts['documents']:,} documents, {facts['characters']:,} characters, vocabulary {facts['vocab_size']:,}; "
        f"{facts['train_tokens']:,} tokens to train, {facts['val_tokens']:,} to validate"
    )


def _train_line(results: dict[str, Any]) -> str:
    train = results["train"]
    how = "compiled" if train["compiled"] else "eager"
    val = f", validation loss {train['val_loss']:.3f}" if train["val_loss"] is not None else ""
    return (
        f"  {results['model']['parameters'] / 1e6:.1f}M parameters, {train['steps']:,} steps, "
        f"{train['tokens']:,} tokens"
        f" at {train['tokens_per_second']:,.0f} tokens/s ({train['precision']}, {how}){val}"
    )


def _evaluate_line(numbers: dict[str, Any]) -> str:
    line = f"  validation loss {numbers['val_loss']:.3f} (perplexity {numbers['perplexity']:.1f})"
    if "bigram_loss" in numbers:
        line += f"; a bigram model: {numbers['bigram_loss']:.3f}, a unigram model: {numbers['unigram_loss']:.3f}"
    return line


def _export_line(path: Path, export: dict[str, Any]) -> str:
    worst = max(check["max_abs_error"] for check in export["checks"])
    size, checked = export["bytes"] / 1e6, len(export["checks"])
    return f"  {path}: {size:.1f} MB, {checked} shapes checked, largest difference {worst:.1e}"
