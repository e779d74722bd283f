"""`deepseek compress`, `evaluate` and `export`: a stage alone, on a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.data import Tokenizer
    from deepseek.road.recipe import Recipe
    from deepseek.train.text_data import TextData

_BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a run folder with a bundle in it.")]
_Data = Annotated[
    str | None, typer.Option(help="Text to measure on; default: the validation text of the run the bundle is in.")
]


def compress(
    bundle: _BundlePath,
    out: Annotated[Path | None, typer.Option(help="Where the new bundle goes; default: BUNDLE-int8.")] = None,
    data: _Data = None,
    method: Annotated[str | None, typer.Option(help="dynamic, weight_only or static.")] = None,
) -> None:
    """Quantize a bundle to int8, and measure size, quality and time before and after."""
    from deepseek.compress.config import CompressConfig
    from deepseek.compress.stage import compress_bundle
    from deepseek.road import language
    from deepseek.road.run_folder import RunFolder
    from deepseek.road.walk import compress_lines

    path = _bundle_in(bundle)
    text = _text_for(path, data)
    config = CompressConfig(**({} if method is None else {"method": method}))
    target = out or path.with_name(f"{path.name}-int8")
    run = RunFolder(path.parent)
    if target.exists():
        raise ConfigError(f"{target} exists already", fix="choose another place with --out, or remove it first")
    report = compress_bundle(path, target, language.validation_batches(text), config=config)
    if run.results:
        run.record("compress", report.to_dict())
    for line in compress_lines(report.to_dict()):
        typer.echo(line)
    typer.echo(f"written: {target}")


def evaluate(bundle: _BundlePath, data: _Data = None) -> None:
    """Measure a bundle on text: loss, perplexity, bits a byte, beside unigram and bigram models."""
    from deepseek.bundle import load
    from deepseek.road import language
    from deepseek.road.recipe import EvaluateConfig
    from deepseek.road.run_folder import RunFolder

    path = _bundle_in(bundle)
    run = RunFolder(path.parent)
    numbers = language.evaluate_stage(
        load(path), _text_for(path, data), EvaluateConfig(), run if run.results and data is None else None
    )
    for name, value in numbers.items():
        typer.echo(f"{name:<14} {value:.4f}")


def export(
    bundle: _BundlePath,
    out: Annotated[Path | None, typer.Option(help="The file; default: BUNDLE/exports/model.onnx.")] = None,
) -> None:
    """Export a bundle to ONNX; the file is run in ONNX Runtime and compared before it counts."""
    from deepseek.bundle import load
    from deepseek.export.onnx_export import export_onnx

    path = _bundle_in(bundle)
    report = export_onnx(load(path, device="cpu").model, out or path / "exports" / "model.onnx")
    console = Console(highlight=False, soft_wrap=True)
    for check in report.to_dict()["checks"]:
        console.print(f"  shape {check['shape']}  largest difference {check['max_abs_error']:.1e}", markup=False)
    console.print(f"written: {report.path} ({report.bytes / 1e6:.1f} MB, opset {report.opset})", markup=False)


def _bundle_in(path: Path) -> Path:
    """Return the bundle meant: the path itself, or the `bundle` of a run folder."""
    return path / "bundle" if (path / "bundle" / "config.yaml").is_file() else path


def _text_for(bundle: Path, data: str | None) -> TextData:
    from deepseek.bundle import load
    from deepseek.road import language
    from deepseek.road.recipe import DataConfig, Recipe
    from deepseek.road.walk import recipe_of_run

    loaded = load(bundle, device="cpu")
    tokenizer: Tokenizer | None = loaded.tokenizer
    if tokenizer is None:
        raise ConfigError(f"{bundle} has no tokenizer", wanted="a bundle of a language model")
    if data is not None:
        recipe: Recipe = Recipe(data=DataConfig(train=data), model=loaded.config.model)
    elif (bundle.parent / "recipe.yaml").is_file():
        recipe = recipe_of_run(bundle.parent)[0]
    else:
        raise ConfigError(
            f"{bundle} is not in a run folder, so its text is not known", fix="name text with --data PATH"
        )
    return language.text_for(recipe, tokenizer)
