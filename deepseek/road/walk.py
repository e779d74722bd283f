"""`deepseek run recipe.yaml`: the whole road, stage after stage, each said aloud as it begins and ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.markup import escape

from deepseek import bundle as bundles
from deepseek.checkpoint.store import list_checkpoints
from deepseek.compress.table import form_lines
from deepseek.errors import ConfigError, MissingExtraError
from deepseek.files import folder_lock
from deepseek.report import render_report
from deepseek.road.recipe import EvaluateConfig, Recipe, read_recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.stages import Stages, stages_of

Say = Callable[[str], None]
"""Takes a line in rich's markup."""

logger = logging.getLogger("deepseek.road")

_AFTER_TRAINING = ("evaluate", "samples", "examples", "compress", "export", "serve")


@dataclass
class Walk:
    """What a finished walk left."""

    run: RunFolder
    report: Path | None
    interrupted: bool
    seconds: float
    next_steps: list[tuple[str, str]] = field(default_factory=list)
    """What can be done with it: a word, and the command."""


def walk(recipe: Recipe, say: Say, *, resume: bool = False) -> Walk:
    """Walk the road of `recipe`; `say` gets a line at each stage. A finished run of that name is not overwritten.

    With `resume`, only what is missing is done: training goes on from its newest good checkpoint, stages that are
    finished and whose settings are the same stay. Wrong data leaves nothing behind.
    Raises ConfigError when the run folder holds another run, and what the stages raise; finished stages stay.
    """
    start = time.perf_counter()
    _check_extras(recipe)
    stages = stages_of(recipe.task_name)
    stages.check(recipe)
    run, data, interrupted = _data_and_train(recipe, stages, say, resume)
    if interrupted:
        return _walked(stages, run, None, True, start)
    with folder_lock(run.path):
        _measure_and_export(recipe, stages, run, data, say)
        result = _walked(stages, run, run.path / "report.html", False, start)
        render_report(run.path)
    return result


def train_only(recipe: Recipe, say: Say, *, resume: bool = False) -> Walk:
    """Do the stages data and train alone. Raises as `walk` does."""
    start = time.perf_counter()
    stages = stages_of(recipe.task_name)
    run, _, interrupted = _data_and_train(recipe, stages, say, resume)
    return _walked(stages, run, None, interrupted, start)


def _walked(stages: Stages, run: RunFolder, report: Path | None, interrupted: bool, start: float) -> Walk:
    seconds = time.perf_counter() - start
    run.record("seconds", run.results.get("seconds", 0.0) + seconds)  # those before a resume too
    return Walk(run, report, interrupted, seconds, stages.next_steps(run))


def _data_and_train(recipe: Recipe, stages: Stages, say: Say, resume: bool) -> tuple[RunFolder, Any, bool]:
    """Return the run, its data, and whether training was interrupted."""
    with _held(recipe, resume) as run:
        if resume:
            _check_same_run(run, recipe)
        with stage(say, "data"):
            data = stages.data_stage(recipe, run, resume=resume)
            if resume:
                _go_on(run, recipe, stages, data.facts)
            else:
                run.start(recipe.name, recipe)
                run.record("data", data.facts)
            say(stages.data_line(run.results["data"]))
        if _is_done(run, "train", run.bundle) and not run.results["train"].get("interrupted"):
            say("[bold]train[/bold]  done before")
            return run, data, False
        run.forget("train", *_AFTER_TRAINING)
    with stage(say, "train"):  # the trainer holds the folder itself
        unfinished = resume and bool(list_checkpoints(run.path / "checkpoints"))
        interrupted = stages.train_stage(recipe, run, data, resume=unfinished)
        if run.results["train"].get("memory_plan"):
            say(escape(str(run.results["train"]["memory_plan"])))
        say(stages.train_line(run.results))
        if run.results["train"].get("stop_reason"):
            say("  ended early: " + escape(str(run.results["train"]["stop_reason"])))
    return run, data, interrupted


def _measure_and_export(recipe: Recipe, stages: Stages, run: RunFolder, data: Any, say: Say) -> None:
    bundle = bundles.load(run.bundle)
    if not all(_is_done(run, section) for section in stages.evaluated):
        with stage(say, "evaluate"):
            stages.evaluate_stage(bundle, data, recipe.evaluate or EvaluateConfig(), run)
            say(stages.evaluate_line(run.results["evaluate"]))
    if recipe.compress is not None and not _is_done(run, "compress", run.compressed):
        with stage(say, "compress"):
            config = recipe.compress.after_training(recipe.train.learning_rate)
            run.record("compress", stages.compress_stage(run.bundle, run.compressed, data, config))
            for line in compress_lines(run.results["compress"]):
                say(line)
    if recipe.export is not None and not _is_done(run, "export", run.onnx):
        with stage(say, "export"):
            run.record("export", stages.export_stage(bundle, run.onnx, recipe.export))
            say(_export_line(run.onnx, run.results["export"]))


@contextmanager
def _held(recipe: Recipe, resume: bool) -> Iterator[RunFolder]:
    """Hold the run's folder; folders made for a run that came to nothing are removed."""
    path = recipe.folder
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    if resume and not (path / "recipe.yaml").is_file():
        raise ConfigError(f"{path} holds no run to resume", fix="start it without --resume, or check name and folder")
    try:
        with folder_lock(path):
            run = RunFolder(path)
            _check_free(run, resume)
            yield run
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _check_same_run(run: RunFolder, recipe: Recipe) -> None:
    before = recipe_of_run(run.path)[0]
    for section in ("data", "model", "task"):
        if getattr(before, section) != getattr(recipe, section):
            raise ConfigError(
                f"the run in {run.path} began with another {section} section",
                fix=f"give the new run another name (--name), or resume with {run.path / 'recipe.yaml'}",
            )


def _go_on(run: RunFolder, recipe: Recipe, stages: Stages, found: dict[str, Any]) -> None:
    """Take up a run; stages whose settings are others than before are done anew."""
    facts = run.results.get("data", found)
    if any(facts.get(name) != value for name, value in found.items() if name != "seconds"):
        logger.warning("the data are not the ones that the run in %s began with", run.path)
    before = recipe_of_run(run.path)[0]
    if before.train != recipe.train:
        run.forget("train", *_AFTER_TRAINING)
    for section, names in (("evaluate", stages.evaluated), ("compress", ("compress",)), ("export", ("export",))):
        if getattr(before, section) != getattr(recipe, section):
            run.forget(*names)
    run.keep_recipe(recipe)
    run.record("data", facts)


def _is_done(run: RunFolder, section: str, *left: Path) -> bool:
    """Return whether a stage has recorded its numbers and what it left is there."""
    return section in run.results and all(path.exists() for path in left)


def _check_extras(recipe: Recipe) -> None:
    """Raise MissingExtraError now, not after training, for a stage whose packages are not installed."""
    wanted = [("matplotlib", "report")]
    if recipe.export is not None:
        wanted += [(package, "export") for package in ("onnx", "onnxscript", "onnxruntime")]
    for package, extra in wanted:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


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
    """Return a line for each form of the model: size, quality, time."""
    return [escape(line) for line in form_lines(table)]


def _check_free(run: RunFolder, resume: bool) -> None:
    if resume or not (run.bundle.exists() or list_checkpoints(run.path / "checkpoints")):
        return
    raise ConfigError(
        f"{run.path} holds a run already",
        found="a bundle" if run.bundle.exists() else "checkpoints of an unfinished run",
        fix=f"go on with --resume, give the run another name (--name), or remove {run.path}",
    )


def _export_line(path: Path, export: dict[str, Any]) -> str:
    worst = max(check["max_abs_error"] for check in export["checks"])
    size, checked = export["bytes"] / 1e6, len(export["checks"])
    return f"  {escape(str(path))}: {size:.1f} MB, {checked} shapes checked, largest difference {worst:.1e}"
