"""`deepseek compress`: a bundle in a smaller form, or the search for one that meets a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deepseek.cli.stages import BundlePath, DataOption, bundle_in, data_for, recipe_of, run_of
from deepseek.errors import ConfigError, QuantizationError

if TYPE_CHECKING:
    from deepseek.compress.config import CompressConfig

_METHODS = "dynamic, weight_only, static, int4, bf16, fp16, mixed or qat; default: as the run's recipe says."


def compress(
    bundle: BundlePath,
    out: Annotated[
        Path | None, typer.Option(help="Where the new bundle goes; default: BUNDLE-int8, with a budget BUNDLE-small.")
    ] = None,
    data: DataOption = None,
    method: Annotated[str | None, typer.Option(help=_METHODS)] = None,
    size: Annotated[str | None, typer.Option(help="Search: most bytes of the weights, such as 1.2MB.")] = None,
    latency: Annotated[str | None, typer.Option(help="Search: most time of one sample here, such as 20ms.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="How much worse the task's main figure may be: 1% of it, or 0.01 of its units.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="How long a search may take (10m); the same command goes on.")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Search on where the budget is met already.")] = False,
) -> None:
    """Make a bundle smaller and measure size, quality and time of each form; or search one that meets a budget.

    With --size or --latency, pruning, distillation, number formats and runtimes are tried from cheap to expensive.
    """
    from deepseek.bundle import load
    from deepseek.road.stages import stages_of

    path = bundle_in(bundle)
    recipe = recipe_of(path)
    options = {"method": method, "size": size, "latency": latency, "max_drop": max_drop, "time": time}
    config = _config(recipe.compress if recipe is not None else None, options, thorough)
    config = config if recipe is None else config.after_training(recipe.train.learning_rate)
    searched = config.budget() is not None
    target = out or _target(path, "small" if searched else "int8")
    if target.exists():
        raise ConfigError(f"{target} exists already", fix="choose another place with --out, or remove it first")
    loaded = load(path, device="cpu")
    stages = stages_of(loaded.config.task)
    measured_on = data_for(stages, loaded, recipe, data)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with _shown() as say:
            report = stages.compress_stage(path, target, measured_on, config, say)
    except QuantizationError:
        _show_front(console, target, searched)
        raise
    with run_of(path, out is None and data is None) as run:
        if run is not None:
            run.record("compress", report)
    _print(console, report)
    if searched:
        _show_front(console, target, searched)
    console.print(f"written: {target}", markup=False)


def _config(of_recipe: CompressConfig | None, options: dict[str, str | None], thorough: bool) -> CompressConfig:
    """Return the recipe's settings with what the command line says in their place. A method ends a recipe's search."""
    from deepseek.compress.config import CompressConfig

    config = of_recipe or CompressConfig()
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "method" in changes:
        if "size" in changes or "latency" in changes:
            raise ConfigError(
                "a search chooses the method itself", found=f"--method {changes['method']}", fix="leave --method out"
            )
        changes |= {"size": None, "latency": None}
    if thorough:
        changes["thorough"] = True
    config = config.replace(**changes) if changes else config
    if config.budget() is None and ({"time", "thorough"} & changes.keys()):
        raise ConfigError("--time and --thorough are for a search", fix="add --size, --latency or both")
    return config


def _target(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.stem}-{ending}.pt" if path.is_file() else f"{path.name}-{ending}")


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """Show what is being done and for how long, at a terminal; elsewhere a line for each step, on standard error."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda words: console.print(f"  {words}", markup=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("reading", total=None)
        yield lambda words: progress.update(shown, description=words)


def _print(console: Console, report: dict[str, Any]) -> None:
    from deepseek.compress.table import forms_table

    console.print(forms_table(report))


def _show_front(console: Console, target: Path, searched: bool) -> None:
    """Print the points of a search's front, and draw them on a page beside its journal."""
    from deepseek.compress.search.run import search_folder
    from deepseek.compress.table import front_table
    from deepseek.report.front_page import render_front

    stored = search_folder(target) / "front.json"
    if not searched or not stored.is_file():
        return
    found = json.loads(stored.read_text(encoding="utf-8"))
    console.print(front_table(found))
    drawn = render_front(found, stored.with_suffix(".html")) if find_spec("matplotlib") is not None else stored
    console.print(f"all points: {drawn}", markup=False)
