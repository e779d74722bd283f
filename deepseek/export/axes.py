"""Which dimensions of a model's inputs may change: told by the caller, told by the template, or found by capturing.

A template may carry `input_axes`, a mapping from input names to axis names (None where a size is fixed); inputs it
leaves out follow the rules here. Not here: sizes and values of inputs (`signature.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.capture import FixedAxisError, capture
from deepseek.export.signature import Axes, axis_sizes, check_axes, default_axes, evaluating, resized

AxisNames = dict[str, tuple[str | None, ...]]


def captured(
    target: nn.Module | Callable[..., Any], inputs: Mapping[str, Tensor], axes: Axes | None
) -> tuple[ExportedProgram, AxisNames]:
    """Return the graph and the axes that are free in it.

    `axes` given: these, or an ExportError naming the one that can't change. None: what the template tells, else the
    batch and the lengths of integer ids, of which a template's own code may fix some, and those of a template's
    recordings. Dimensions that the graph ties together get one name.
    """
    if axes is not None:
        chosen = check_axes(inputs, axes)
        return capture(target, inputs, chosen), chosen
    told = {name: names for name, names in (getattr(target, "input_axes", None) or {}).items() if name in inputs}
    wanted = _usual(target, inputs) | check_axes({name: inputs[name] for name in told}, told)
    return _most_free(target, inputs, wanted)


def _most_free(
    target: nn.Module | Callable[..., Any], inputs: Mapping[str, Tensor], wanted: AxisNames
) -> tuple[ExportedProgram, AxisNames]:
    """Capture with fewer and fewer free axes, until the model's own code allows it."""
    first: ExportError | None = None
    while True:
        try:
            program = capture(target, inputs, wanted)
        except ExportError as error:
            guessed = {axis for names in wanted.values() for axis in names if axis and "." in axis}
            fixed = {error.axis} if isinstance(error, FixedAxisError) else guessed
            if not fixed or "batch" in fixed or not hasattr(target, "example_inputs"):
                raise (first or error) from None
            first = first if isinstance(error, FixedAxisError) else first or error
            wanted = {n: tuple(None if a in fixed else a for a in names) for n, names in wanted.items()}
            continue
        return program, _tied(program, wanted)


def _usual(target: object, inputs: Mapping[str, Tensor]) -> AxisNames:
    """Return the default axes, with the batch where `example_inputs` shows it, and lengths that the model takes.

    Those are the inner dimensions of a template's 3-D floats (recordings, sets of points), named `input.dimension`.
    """
    axes = default_axes(inputs)
    make = getattr(target, "example_inputs", None)
    if make is None:
        return axes
    two, three = make(batch_size=2), make(batch_size=3)
    if any(name not in two or two[name].dim() != tensor.dim() for name, tensor in inputs.items()):
        return axes
    times = {size for n in axes for axis, size in zip(axes[n], inputs[n].shape, strict=True) if axis == "time"}
    for name, tensor in inputs.items():
        names = list(axes[name])
        if tensor.dim() == 3 and tensor.dtype.is_floating_point:
            names = ["time" if size in times else f"{name}.{i}" for i, size in enumerate(tensor.shape)]
        grows = [a != b for a, b in zip(two[name].shape, three[name].shape, strict=True)]
        axes[name] = tuple("batch" if g else None if n == "batch" else n for g, n in zip(grows, names, strict=True))
    guessed = {axis for names in axes.values() for axis in names if axis and "." in axis}
    refused = {axis for axis in guessed if not _takes(target, inputs, axes, axis)}
    return {name: tuple(None if axis in refused else axis for axis in names) for name, names in axes.items()}


def _takes(target: Any, inputs: Mapping[str, Tensor], axes: Axes, axis: str) -> bool:
    """Return whether the model runs with one dimension one smaller."""
    sizes = axis_sizes(inputs, axes)
    try:
        with evaluating(target):
            target(**resized(inputs, axes, {**sizes, axis: max(1, sizes[axis] - 1)}))
    except (DeepSeekError, RuntimeError, ValueError, IndexError):
        return False
    return True


def _tied(program: ExportedProgram, axes: AxisNames) -> AxisNames:
    """Give dimensions that are one number in the graph one name; a name of their own for lengths that were found."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    named: dict[str, str] = {}
    result: AxisNames = {}
    order = sorted(axes, key=lambda name: any("." in (axis or "") for axis in axes[name]))  # guessed names last
    placeholders = dict(zip(axes, program.graph_signature.user_inputs, strict=True))
    for name in order:
        shape = nodes[str(placeholders[name])].meta["val"].shape
        pairs = zip(axes[name], shape, strict=True)
        result[name] = tuple(axis and named.setdefault(str(size), _final(axis)) for axis, size in pairs)
    return {name: result[name] for name in axes}


def _final(axis: str) -> str:
    """Return `frames` for a dimension found in `input_features`, `positions_1` for one of `positions`."""
    name, dot, index = axis.partition(".")
    return axis if not dot else "frames" if name == "input_features" else f"{name}_{index}"
