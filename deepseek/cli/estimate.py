"""`deepseek estimate`: how much memory a recipe's training takes, part by part, before anything is allocated."""

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
    from deepseek.train.memory.survey import Survey


def estimate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe whose training is reckoned.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, in bytes.")] = False,
) -> None:
    """Say how much memory a recipe's training takes, and what recompute and smaller micro-batches would save."""
    import torch

    from deepseek.hardware import resolve_device
    from deepseek.road.recipe import read_recipe
    from deepseek.train.memory.survey import survey

    chosen = read_recipe(recipe)
    config = chosen.train
    model, task, batch = _training_of(chosen)
    found = survey(lambda: model, task, batch, config, torch.device(resolve_device(device or config.device)))
    typer.echo(dumps(found.to_dict(), ensure_ascii=False) if json else _text(found))


def _text(found: Survey) -> str:
    from deepseek.train.memory.size import in_words

    lines = [f"training on {found.device} in {found.precision}, micro-batches of {found.rows}:"]
    lines += [f"  {name:<12} {in_words(size):>10}" for name, size in found.estimate._asdict().items()]
    free = "" if found.free is None else f"   ({in_words(found.free)} free)"
    lines += [f"  {'peak':<12} {in_words(found.estimate.total):>10}{free}", "", "peak with other settings:"]
    rows = sorted({rows for _, rows in found.peaks}, reverse=True)
    lines.append(f"  {'recompute':<12}" + "".join(f"{f'micro-batch {count}':>18}" for count in rows))
    for policy in dict.fromkeys(policy for policy, _ in found.peaks):
        cells = "".join(f"{in_words(found.peaks[policy, count]):>18}" for count in rows)
        lines.append(f"  {policy:<12}{cells}")
    lines.append("besides these: the process with its libraries, about 0.4 GiB")
    if found.plan is not None:
        lines += ["", found.plan.table()]
    return "\n".join(lines)


def _training_of(recipe: Recipe) -> tuple[nn.Module, Task, Any]:
    """Return the recipe's model without weights, its task, and a batch of the sizes that its training has."""
    import torch

    from deepseek.models.factory import build, model_config
    from deepseek.road.recipe import LANGUAGE_MODELING
    from deepseek.tasks.build import build_task

    rows = recipe.train.batch_size
    if recipe.task_name == LANGUAGE_MODELING:
        config: Any = model_config(recipe.model)[1]
        if "vocab_size" not in recipe.model and recipe.data.vocab_size is not None:
            config = config.replace(vocab_size=recipe.data.vocab_size)  # the tokenizer's, which is not trained yet
        ids = torch.randint(config.vocab_size, (rows, config.max_length), generator=torch.Generator().manual_seed(0))
        batch: Any = {"input_ids": ids, "labels": ids.clone()}
        if recipe.train.isolate_documents:
            batch["document_ids"] = torch.zeros_like(ids)
    else:
        config, batch = _samples_of(recipe)
    with torch.device("meta"):
        return build(config), build_task(recipe.task), batch


def _samples_of(recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """Return the model's config with what the data say, and the first batch of the data."""
    from deepseek.road.fit_model import first_batch, fitted_config
    from deepseek.road.run_folder import RunFolder
    from deepseek.road.stages import stages_of

    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        data = stages_of(recipe.task_name).data_stage(recipe, RunFolder(Path(folder)))
    return fitted_config(recipe, data), first_batch(data, recipe.train.batch_size)
