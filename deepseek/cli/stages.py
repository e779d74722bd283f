"""`deepseek evaluate` and `export`: a stage alone, on a bundle. Not here: `compress` (`cli/compress.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.bundle import Bundle
    from deepseek.road.recipe import Recipe
    from deepseek.road.run_folder import RunFolder
    from deepseek.road.stages import Stages

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a run folder with a bundle in it.")]
DataOption = Annotated[
    str | None, typer.Option(help="Data to measure on; default: what the run that the bundle is in held back.")
]


def evaluate(bundle: BundlePath, data: DataOption = None) -> None:
    """Measure a bundle on data held back: what its task measures, beside what answers without a model reach."""
    from deepseek.bundle import load
    from deepseek.road.recipe import EvaluateConfig
    from deepseek.road.stages import stages_of

    path = bundle_in(bundle)
    loaded = load(path)
    recipe = recipe_of(path)
    config = (recipe.evaluate if recipe is not None else None) or EvaluateConfig()
    stages = stages_of(loaded.config.task)
    measured_on = data_for(stages, loaded, recipe, data)
    with run_of(path, data is None) as run:
        numbers = stages.evaluate_stage(loaded, measured_on, config, run)
    width = max(14, *(len(name) for name in numbers))
    for name, value in numbers.items():
        typer.echo(f"{name:<{width}} {value:.4f}")


def export(
    bundle: BundlePath,
    out: Annotated[Path | None, typer.Option(help="The file; default: BUNDLE/exports/model.onnx.")] = None,
) -> None:
    """Export a bundle to ONNX; the file is run in ONNX Runtime and compared before it counts."""
    from deepseek.bundle import load
    from deepseek.export.onnx_export import OnnxConfig, export_onnx

    path = bundle_in(bundle)
    loaded = load(path, device="cpu")
    target = out or (path.with_suffix(".onnx") if path.is_file() else path / "exports" / "model.onnx")
    recipe = recipe_of(path)
    config = (recipe.export if recipe is not None else None) or OnnxConfig()
    report = export_onnx(loaded.model, target, config=config)
    with run_of(path, out is None) as run:
        if run is not None:
            run.record("export", report.to_dict())
    for check in report.to_dict()["checks"]:
        typer.echo(f"  shape {check['shape']}  largest difference {check['max_abs_error']:.1e}")
    typer.echo(f"written: {report.path} ({report.bytes / 1e6:.1f} MB, opset {report.opset})")


def bundle_in(path: Path) -> Path:
    """Return the bundle meant: the path itself, or the `bundle` of a run folder."""
    path = path if path.name not in {"", ".."} else path.resolve()  # `.` has no name to put -int8 after
    return path / "bundle" if (path / "bundle" / "config.yaml").is_file() else path


def recipe_of(bundle: Path) -> Recipe | None:
    """Return the recipe of the run whose folder the bundle is in."""
    from deepseek.road.walk import recipe_of_run

    return recipe_of_run(bundle.parent)[0] if (bundle.parent / "recipe.yaml").is_file() else None


@contextmanager
def run_of(bundle: Path, usual: bool) -> Iterator[RunFolder | None]:
    """Hold the run whose trained bundle this is, and renew its report; None for other bundles, or where data or
    place are not the `usual` ones."""
    from deepseek.files import folder_lock
    from deepseek.report import render_report
    from deepseek.road.run_folder import RunFolder

    run = RunFolder(bundle.parent)
    if not usual or not run.results or bundle.resolve() != run.bundle.resolve():
        yield None
        return
    with folder_lock(run.path):
        yield run
        if (run.path / "report.html").is_file():
            render_report(run.path)


def data_for(stages: Stages, bundle: Bundle, recipe: Recipe | None, data: str | None) -> Any:
    """Return the data to measure on: all of `data`, else what the run's recipe held back from training."""
    if data is not None:
        return stages.foreign_data(bundle, data, recipe)
    if recipe is None:
        raise ConfigError(
            f"{bundle.path} is not in a run folder, so its data are not known", fix="name them with --data PATH"
        )
    return stages.data_of(recipe, bundle)
