"""`deepseek verify`: does every form of a bundle still answer like the bundle, and how fast is each?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from deepseek.bundle import Bundle
    from deepseek.export.ladder import Ladder, Rung

_CALIBRATION_BATCHES = 8
_WIDTH = 100  # columns that the table needs


def verify_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a run folder with a bundle in it.")],
    data: Annotated[
        str | None, typer.Option(help="Data to measure on; default: what the run that the bundle is in held back.")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option(help="Only these rungs, with commas: eager, onnxruntime, 'int8 static', ...")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches of data to measure the task on.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds of timing for each form.")] = 0.5,
    record: Annotated[bool, typer.Option(help="Write a ladder without failures to BUNDLE/exports/ladder.json.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Hold every form of a bundle (exported, bf16, int8) against the bundle itself: error, quality, time, size."""
    from deepseek import bundle as bundles
    from deepseek.cli.stages import bundle_in
    from deepseek.export.ladder import climb

    path = bundle_in(bundle)
    metric, calibration = _measures(bundles.load(path, device="cpu"), data, batches)
    ladder = climb(
        path,
        rungs=None if rungs is None else [name.strip() for name in rungs.split(",") if name.strip()],
        metric=metric,
        calibration=calibration,
        seconds=seconds,
        record=record,
        say=lambda line: typer.echo(line, err=True),
    )
    if json:
        typer.echo(dumps(ladder.to_dict(), ensure_ascii=False))
    else:
        _show(ladder)
    raise typer.Exit(0 if ladder.ok else 1)


def _measures(
    bundle: Bundle, data: str | None, batches: int
) -> tuple[Callable[[nn.Module], Mapping[str, float]] | None, list[Any]]:
    """Return what measures a model on its task, and batches to calibrate with; nothing where no data are known."""
    from deepseek.cli.stages import data_for, recipe_of
    from deepseek.road.language import validation_batches
    from deepseek.road.recipe import LANGUAGE_MODELING
    from deepseek.road.stages import stages_of
    from deepseek.tasks.build import build_task
    from deepseek.tasks.inputs import input_names
    from deepseek.tasks.task import evaluate
    from deepseek.train.loop import take

    recipe = recipe_of(bundle.path)
    if data is None and recipe is None:
        return None, []
    found = data_for(stages_of(bundle.config.task), bundle, recipe, data)
    task = build_task({"name": bundle.config.task, **bundle.config.task_settings})
    if bundle.config.task == LANGUAGE_MODELING:
        measured, seen = validation_batches(found)[:batches], list(take(found.train, _CALIBRATION_BATCHES))
    else:
        with found.held_out:
            measured = list(take(found.held_out, batches))
        with found.plain:
            seen = list(take(found.plain, _CALIBRATION_BATCHES))
    if not measured:
        raise ConfigError("there is nothing to measure on", found=f"no batch in {data or 'the held-out part'}")
    known = input_names(type(bundle.model)).known
    calibration = [{name: value for name, value in batch.items() if name in known} for batch in seen]
    return lambda model: evaluate(model, measured, task), [batch for batch in calibration if batch]


def _show(ladder: Ladder) -> None:
    """Print the table, and below it what failed and what could not be tried."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    figure = next((rung.figure.name for rung in ladder.rungs if rung.figure is not None), "task")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("form", "result"):
        table.add_column(name, no_wrap=True)
    for name in ("error", "SNR dB", figure, "p50 ms", "p99 ms", "speed", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for rung in ladder.rungs:
        table.add_row(*_cells(rung))
    console = Console(highlight=False, markup=False, width=max(_WIDTH, Console().width))
    console.print(table)
    shapes = "; ".join(", ".join(f"{axis} {size}" for axis, size in shape.items()) for shape in ladder.shapes)
    console.print(f"compared at {shapes or 'the example'}; speed is over eager", soft_wrap=True)
    for rung in ladder.rungs:
        if rung.reason:
            console.print(f"{rung.name}: {rung.status}: {rung.reason}", soft_wrap=True)
        if rung.first_difference:
            console.print(f"  first difference: {rung.first_difference}", soft_wrap=True)


def _cells(rung: Rung) -> list[str]:
    seen, time = rung.deviation, rung.latency
    return [
        rung.name,
        rung.status,
        "" if seen is None else f"{seen.max_abs_error:.1e}",
        "" if seen is None else f"{seen.snr_db:.1f}",
        "" if rung.figure is None else f"{rung.figure.value:.4f}",
        "" if time is None else f"{time.p50_ms:.2f}",
        "" if time is None else f"{time.p99_ms:.2f}",
        "" if rung.speedup is None else f"{rung.speedup:.2f}x",
        "" if rung.bytes is None else f"{rung.bytes / 1e6:.3f}",
    ]
