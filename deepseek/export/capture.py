"""One whole graph of a model with `torch.export`, or a typed error that names the operation and the user's line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.signature import Axes, axis_sizes, evaluating, resized

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<string>", "<eval_with_key>", "<frozen")
_NOISY_LOGGERS = (
    "torch.onnx",
    "torch.__trace",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "torch._inductor",
    "onnxscript",
    "onnx_ir",
)


class FixedAxisError(ExportError):
    """A named axis can't change: the model's own code fixes it. `axis` is its name."""

    axis: str = ""


def capture(
    target: nn.Module | Callable[..., Any],
    inputs: Mapping[str, Tensor],
    axes: Axes,
    positional: str | None = None,
) -> ExportedProgram:
    """Return the graph of `target` in eval mode, with the named axes free to change.

    `positional`: the name of the target's `*arguments`, for one that takes its inputs so, in their order.
    Raises ExportError if Python decides on tensor values, an operation is unknown, or a named axis can't change.
    """
    module = target if isinstance(target, nn.Module) else _as_module(target)
    sample = resized(inputs, axes, axis_sizes(inputs, axes))
    shapes = {name: {index: Dim.DYNAMIC for index, axis in enumerate(axes[name]) if axis} for name in sample}
    with evaluating(module), quiet():
        try:
            if positional is not None:
                given = tuple(sample.values())
                return torch.export.export(module, given, dynamic_shapes={positional: tuple(shapes.values())})
            return torch.export.export(module, (), dict(sample), dynamic_shapes=shapes)
        except DeepSeekError:
            raise
        except Exception as error:
            raise _fixed_axis(error, axes) or capture_error(error, module) from error


def axis_limits(program: ExportedProgram, axes: Axes) -> dict[str, int]:
    """Return the largest size of each named axis that the captured code says it can take."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    limits: dict[str, int] = {}
    for node_name, names in zip(program.graph_signature.user_inputs, axes.values(), strict=True):
        for size, axis in zip(nodes[str(node_name)].meta["val"].shape, names, strict=True):
            if axis is None or isinstance(size, int):
                continue
            allowed = program.range_constraints.get(size.node.expr)
            if allowed is not None and allowed.upper.is_Integer:
                limits[axis] = min(int(allowed.upper), limits.get(axis, int(allowed.upper)))
    return limits


def capture_error(error: BaseException, model: object = None) -> ExportError:
    """Turn what torch says about a failed capture into an ExportError with the user's line and the module's name."""
    reason, hints = _reason(error)
    inside = module_name(error, model) if isinstance(model, nn.Module) else None
    return ExportError(
        f"the model can't be captured whole: {reason}",
        found=(user_line(error) or "") + (f" (in module '{inside}')" if inside else "") or None,
        fix=hints
        or "make that line depend on shapes only, or write it with torch operations (torch.where, torch.cond)",
    )


def user_line(error: BaseException) -> str | None:
    """Return `file:line: code` of the innermost frame outside torch that an error came from."""
    frames = list(getattr(error, "real_stack", None) or [])
    frames += traceback.extract_tb(error.__traceback__) if not frames else []
    for frame in reversed(frames):
        if not frame.filename.startswith(_LIBRARIES):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return None


def module_name(error: BaseException, model: nn.Module) -> str | None:
    """Return the name of the innermost of the model's modules whose code an error came from; None for the model."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found or None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch's exporters and compilers print, log and warn; errors still raise."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _as_module(function: Callable[..., Any]) -> nn.Module:
    """Return a module whose `forward` is the function, signature and all, which is what torch.export takes."""
    module: nn.Module = type("Function", (nn.Module,), {"forward": staticmethod(function)})()
    return module


def _reason(error: BaseException) -> tuple[str, str | None]:
    """Return torch's first line, with its explanation where that is a failed operation, and its hint if it is short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[0]
    if reason.startswith("RuntimeError when"):
        reason = next(
            (line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), reason
        )
    hint = next((line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")), None)
    return reason, hint if hint and len(hint) < 160 else None


def _fixed_axis(error: BaseException, axes: Axes) -> FixedAxisError | None:
    """Return an error that names the axis, if the capture failed because one can't change."""
    place = re.search(r"L\['(\w+)'\]\.size\(\)\[(\d+)\] as dynamic but .* constant \((\d+)\)", str(error))
    if place is None or place[1] not in axes:
        return None
    name, index = place[1], int(place[2])
    fixed = FixedAxisError(
        f"axis '{axes[name][index]}' (dimension {index} of '{name}') can't change",
        found=f"the model's own code fixes it at {place[3]}",
        fix="give None for it in `axes`, or take that size from the input's shape in the model",
    )
    fixed.axis = axes[name][index] or ""
    return fixed
