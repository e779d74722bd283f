"""`deepseek quickstart`, `run` and `train`: the commands that train."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deepseek.cli.allocator import restart_with_huge_pages
from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.road.walk import Walk

STOPPED_BY_SIGTERM = 75
"""Exit code of a run that was asked to make room (pre-emption), saved, and can go on: EX_TEMPFAIL of sysexits.h."""

_RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
_Name = Annotated[str | None, typer.Option(help="Name of the run; its folder is OUTPUT_DIR/NAME.")]
_OutputDir = Annotated[str | None, typer.Option(help="Folder that run folders are made in.")]
_Data = Annotated[str | None, typer.Option("--data", help="The training data, in place of the recipe's data.train.")]
_MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Stop after so many optimizer steps, to try a recipe.")
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint of this run.")]


def quickstart(
    data: Annotated[
        str | None, typer.Option(help="Your own text: a file, JSONL or a folder. Default: Python's documentation.")
    ] = None,
    output_dir: Annotated[str, typer.Option(help="Folder that the run folder is made in.")] = "runs",
    minutes: Annotated[
        float | None, typer.Option(min=0.05, max=10_000, help="Minutes of training to aim for; default: 2.3.")
    ] = None,
) -> None:
    """Raw text to a served, measured language model in a few minutes, without any download."""
    restart_with_huge_pages()
    from deepseek.road.quickstart import quickstart as walk_quickstart
    from deepseek.road.quickstart import quickstart_recipe

    console = _console()
    _closing(console, walk_quickstart(quickstart_recipe(data, output_dir, minutes), console.print))


def run(
    recipe: _RecipePath,
    resume: _Resume = False,
    name: _Name = None,
    output_dir: _OutputDir = None,
    data: _Data = None,
    max_steps: _MaxSteps = None,
) -> None:
    """Walk a recipe's road: data, train, evaluate, compress, export, report."""
    restart_with_huge_pages()
    from deepseek.road.recipe import read_recipe
    from deepseek.road.walk import walk

    chosen = read_recipe(recipe).changed(name=name, output_dir=output_dir, data=data, max_steps=max_steps)
    console = _console()
    _closing(console, walk(chosen, console.print, resume=resume))


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe; its other stages are left.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the unfinished run in this folder.")
    ] = None,
    name: _Name = None,
    output_dir: _OutputDir = None,
    data: _Data = None,
    max_steps: _MaxSteps = None,
) -> None:
    """Train the model of a recipe, or go on with a run: data and train only, the result is RUN/bundle."""
    restart_with_huge_pages()
    from deepseek.road.recipe import read_recipe
    from deepseek.road.walk import recipe_of_run, train_only

    if (recipe is None) == (resume is None):
        raise ConfigError(
            "what to train is not clear",
            wanted="a recipe, or --resume RUN",
            fix="deepseek train recipes/quickstart.yaml",
        )
    options = {"name": name, "output-dir": output_dir, "data": data, "max-steps": max_steps}
    changes = [key for key, value in options.items() if value is not None]
    if resume is not None and changes:
        raise ConfigError(
            "a resumed run keeps its folder and its recipe", found=f"--{'/'.join(changes)}", wanted="--resume RUN alone"
        )
    console = _console()
    chosen = recipe_of_run(resume)[0] if resume is not None else read_recipe(recipe or Path())
    chosen = chosen.changed(name=name, output_dir=output_dir, data=data, max_steps=max_steps)
    _closing(console, train_only(chosen, console.print, resume=resume is not None), only_train=True)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _closing(console: Console, result: Walk, *, only_train: bool = False) -> None:
    folder = escape(str(result.run.path))
    if result.interrupted:
        recipe = shlex.quote(str(result.run.path / "recipe.yaml"))
        command = f"train --resume {shlex.quote(str(result.run.path))}" if only_train else f"run {recipe} --resume"
        console.print(f"\nstopped and saved; go on with: [bold]deepseek {escape(command)}[/bold]")
        by_sigterm = result.run.results.get("train", {}).get("signal") == signal.SIGTERM
        raise typer.Exit(STOPPED_BY_SIGTERM if by_sigterm else 130)
    console.print(f"\ndone in {result.seconds:.0f} s; everything is in [bold]{folder}[/bold]")
    if result.report is not None:
        console.print(f"  report   {escape(str(result.report))}")
    for label, command in result.next_steps:
        console.print(f"  {label:<8} {escape(command)}")
    if only_train:
        recipe = shlex.quote(str(result.run.path / "recipe.yaml"))
        console.print(f"  the other stages   deepseek run {escape(recipe)} --resume")
    elif result.next_steps[:1] and result.next_steps[0][0] == "serve":
        console.print("  your own text   deepseek quickstart --data my.txt")
        console.print(
            "  your own recipe deepseek new my-model.yaml, then deepseek run my-model.yaml "
            "(all settings: deepseek explain)"
        )
