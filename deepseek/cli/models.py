"""`deepseek models`: the sizes of the zoo and what they cost; `deepseek models show NAME`: how one is built."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepseek.models.catalogue import Entry

models = typer.Typer(help="List the models with parameters, operations and memory; `show NAME` draws one.")
_WIDE = 110
"""Columns of a terminal from which on the inputs' shapes are shown too."""


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the sizes of the zoo with parameters, operations and memory; `deepseek models show NAME` draws one."""
    if context.invoked_subcommand is not None:
        return
    from deepseek.models.catalogue import catalogue

    entries = list(catalogue())
    if as_json:
        typer.echo(json.dumps([entry.to_dict() for entry in entries], indent=2))
        return
    columns = 8 if shutil.get_terminal_size((_WIDE, 24)).columns >= _WIDE else 7
    header = ("name", "template", "parameters", "GFLOPs", "fp32", "bf16", "training", "for an input of")
    rows = [header[:columns], *[_row(entry)[:columns] for entry in entries]]
    for line in _aligned(rows, right=range(2, 7)):
        typer.echo(line)
    typer.echo("\nGFLOPs: one forward pass; training: weights, gradients and AdamW's averages in fp32, no activations")
    typer.echo("in a recipe:  model: {name: gpt-mini, max_length: 512}")


@models.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A size of the zoo, a template or a YAML file.")],
    depth: Annotated[int, typer.Option(min=0, help="Levels of blocks to draw.")] = 4,
) -> None:
    """Draw how a model is built: its blocks, their parameters, the shapes they put out; then its paper and config."""
    from deepseek.models.catalogue import entry, find, on_meta
    from deepseek.models.structure import count_text, draw, structure

    name, template, config = find(name)
    cost = entry(name, template, config)
    inputs = ", ".join(f"{key} ({' x '.join(map(str, shape))})" for key, shape in cost.inputs.items())
    typer.echo(f"{name}: {count_text(cost.parameters)} parameters, {_giga(cost.flops)} GFLOPs for {inputs}\n")
    rows = [("block", "kind", "parameters", "output"), *draw(structure(on_meta(config)), depth)]
    for line in _aligned(rows, right=(2,)):
        typer.echo(line)
    typer.echo(f"\n{_paper(type(config).__module__)}\n\n{config.to_yaml().rstrip()}")


def _row(entry: Entry) -> tuple[str, ...]:
    from deepseek.models.structure import count_text

    memory = (_bytes(size) for size in (entry.fp32_bytes, entry.bf16_bytes, entry.training_bytes))
    inputs = ", ".join("x".join(map(str, shape)) for shape in entry.inputs.values())
    return entry.name, entry.template, count_text(entry.parameters), _giga(entry.flops), *memory, inputs


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Return the rows as lines of columns, those in `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _paper(module: str) -> str:
    """Return the lines of the template's file that tell its paper and public counterpart."""
    lines = (importlib.import_module(module).__doc__ or "").splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("Paper")), 0)
    after = next((number for number in range(first, len(lines)) if not lines[number].strip()), len(lines))
    return "\n".join(lines[first:after])


def _bytes(size: int) -> str:
    for scale, unit in ((1e12, "TB"), (1e9, "GB")):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.1f}" if flops >= 1e9 else f"{flops / 1e9:.2g}"
