"""`deepseek verify-trainer`: does training do what it should, on a recipe's own model, task and data?"""

from __future__ import annotations

import tempfile
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from deepseek.road.recipe import Recipe
    from deepseek.tasks.task import Task


def verify_trainer(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe whose training is checked.")],
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Steps of each short run.")] = 6,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds after which no further check begins.")] = 300.0,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check a recipe's training before a long run: accumulation, resume, gradients, precision, compiling, data."""
    from deepseek.road.recipe import read_recipe
    from deepseek.train.verify import verify_trainer as verify

    chosen = read_recipe(recipe)
    model, task, data = _training_of(chosen)
    report = verify(
        model,
        task,
        data.train,
        chosen.train,
        validation=data.val,
        steps=steps,
        time_limit=time_limit,
        say=lambda line: typer.echo(line, err=True),
    )
    if json:
        typer.echo(dumps(report.to_dict(), ensure_ascii=False))
    else:
        typer.echo(report.table())
        typer.echo(f"failed: {', '.join(report.failed)}" if report.failed else "nothing failed")
    raise typer.Exit(0 if report.ok else 1)


def _training_of(recipe: Recipe) -> tuple[nn.Module, Task, Any]:
    """Return the recipe's untrained model, its task, and its data; nothing is written into its run folder."""
    import torch

    from deepseek.models.factory import build, model_config
    from deepseek.road.fit_model import fitted_config
    from deepseek.road.recipe import LANGUAGE_MODELING
    from deepseek.road.run_folder import RunFolder
    from deepseek.road.stages import stages_of
    from deepseek.tasks.build import build_task

    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        data = stages_of(recipe.task_name).data_stage(recipe, RunFolder(Path(folder)))
    if recipe.task_name != LANGUAGE_MODELING:
        config: Any = fitted_config(recipe, data)
    else:
        config = model_config(recipe.model)[1]
        if "vocab_size" not in recipe.model:
            config = config.replace(vocab_size=data.tokenizer.vocab_size)
    torch.manual_seed(recipe.train.seed)
    return build(config), build_task(recipe.task), data
