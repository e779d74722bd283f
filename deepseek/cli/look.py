"""`deepseek check-env`, `explain` and `new`: look around, and begin."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from deepseek.errors import ConfigError


def check_env(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Look at this machine: what is fine, what is slow, what will fail, and the command that mends it."""
    from deepseek.utils.check_env import run_check

    raise typer.Exit(run_check(json))


def explain(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="A setting or section, such as train.learning_rate.")
    ] = "",
) -> None:
    """Say what a setting of the recipe means: type, default, limits. Without a key: all of them."""
    from deepseek import config
    from deepseek.models.factory import model_config
    from deepseek.road.explain import NAMED, explain_name
    from deepseek.road.recipe import Recipe

    template = type(model_config({"name": "GPT"})[1])
    first, _, rest = key.partition(".")
    if first == "model" and rest:
        typer.echo("model." + config.explain(template, rest))
        return
    named = explain_name(key)
    if named is not None and key not in NAMED:
        typer.echo(named)
        return
    for section in [key] if key else list(Recipe.model_fields):
        typer.echo(config.explain(Recipe, section))
        if section == "model":
            typer.echo(config.explain(template, ""))
    if named is not None:
        typer.echo(named)


def new(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write, such as my-model.yaml.")],
    data: Annotated[str, typer.Option(help="The data to train on.")] = "python-docs",
    task: Annotated[str, typer.Option(help="What the model is for: `deepseek explain task` lists them.")] = "",
) -> None:
    """Write a recipe to begin with, every line explained."""
    from deepseek.config import parse_yaml
    from deepseek.files import write_text
    from deepseek.road.new import new_recipe
    from deepseek.road.recipe import checked_recipe

    if path.suffix not in {".yaml", ".yml"}:
        path = path.with_name(path.name + ".yaml")
    if path.exists():
        raise ConfigError(f"{path} exists already", fix="choose another name or remove it first")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:64] or "run"
    text = new_recipe(task or "language_modeling", name, data)
    checked_recipe(parse_yaml(text, str(path)))
    write_text(path, text)
    typer.echo(f"written: {path}\nnext: deepseek run {shlex.quote(str(path))}")
