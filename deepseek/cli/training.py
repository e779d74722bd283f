"""`deepseek quickstart`, `run` and `train`: the commands that train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deepseek.cli.allocator import restart_with_huge_pages
from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.road.walk import Walk

_RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
_Name = Annotated[str | None, typer.Option(help="Name of the run; its folder is OUTPUT_DIR/NAME.")]
_OutputDir = Annotated[str | None, typer.Option(help="Folder that run folders are made in.")]
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


def run(recipe: _RecipePath, resume: _Resume = False, name: _Name = None, output_dir: _OutputDir = None) -> None:
    """Walk a recipe's road: data, train, evaluate, compress, export, report."""
    restart_with_huge_pages()
    from deepseek.road.recipe import read_recipe
    from deepseek.road.walk import walk

    changes = {key: value for key, value in (("name", name), ("output_dir", output_dir)) if value is not None}
    chosen = read_recipe(recipe)
    console = _console()
    _closing(console, walk(chosen.replace(**changes) if changes else chosen, console.print, resume=resume))


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe; its other stages are left.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the unfinished run in this folder.")
    ] = None,
    name: _Name = None,
    output_dir: _OutputDir = None,
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
    changes = {key: value for key, value in (("name", name), ("output_dir", output_dir)) if value is not None}
    if resume is not None and changes:
        raise ConfigError("a resumed run keeps its folder", found=f"--{'/'.join(changes)}", wanted="--resume RUN alone")
    console = _console()
    chosen = recipe_of_run(resume)[0] if resume is not None else read_recipe(recipe or Path())
    chosen = chosen.replace(**changes) if changes else chosen
    _closing(console, train_only(chosen, console.print, resume=resume is not None), only_train=True)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _closing(console: Console, result: Walk, *, only_train: bool = False) -> None:
    folder = escape(str(result.run.path))
    if result.interrupted:
        recipe = shlex.quote(str(result.run.path / "recipe.yaml"))
        command = f"train --resume {shlex.quote(str(result.run.path))}" if only_train else f"run {recipe} --resume"
        console.print(f"\nstopped and saved; go on with: [bold]deepseek {escape(command)}[/bold]")
        raise typer.Exit(130)
    console.print(f"\ndone in {result.seconds:.0f} s; everything is in [bold]{folder}[/bold]")
    if result.report is not None:
        console.print(f"  report   {escape(str(result.report))}")
    bundle = result.run.compressed if result.run.compressed.exists() else result.run.bundle
    console.print(f"  serve    deepseek serve {escape(shlex.quote(str(bundle)))}")
    if only_train:
        recipe = shlex.quote(str(result.run.path / "recipe.yaml"))
        console.print(f"  the other stages   deepseek run {escape(recipe)} --resume")
    else:
        console.print("  your own text   deepseek quickstart --data my.txt")
        console.print(
            "  your own recipe deepseek new my-model.yaml, then deepseek run my-model.yaml "
            "(all settings: deepseek explain)"
        )
