"""Levels for the further edges of a graph, from running it over batches: one streaming histogram an edge.

Memory is constant for each edge, whatever the number of batches. Not here: which edges (`placement.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.export.capture import user_line
from deepseek.export.qdq.graph import Levels
from deepseek.quantization.calibrate import Batch
from deepseek.quantization.config import Calibration
from deepseek.quantization.observers import Histogram
from deepseek.quantization.ranges import find_range, scale_and_zero_point


def observe(
    program: ExportedProgram, sources: Iterable[Node], batches: Iterable[Mapping[str, Tensor]]
) -> dict[Node, Histogram]:
    """Run the graph over `batches` (inputs by name) and return a histogram of each source's values.

    Raises QuantizationError if there are no batches, one does not fit the graph, or a value is not finite.
    """
    histograms = {node: Histogram(node.name) for node in sources}
    interpreter = _Watching(program.graph_module, histograms)
    count = 0
    for count, batch in enumerate(batches, 1):
        arguments = graph_arguments(program, batch)
        try:
            with torch.no_grad():
                interpreter.run(*arguments)
        except DeepSeekError:
            raise
        except Exception as error:
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
            raise QuantizationError(
                f"calibration batch {count} does not run: {str(error).splitlines()[0]}",
                found=f"{shapes} at {user_line(error)}",
                wanted="the shapes of the example inputs, but for the axes that may change",
            ) from error
    if histograms and not count:
        raise QuantizationError("the calibration data has no batches", fix="pass an iterable with at least one batch")
    return histograms


def find_levels(histogram: Histogram, calibration: Calibration, symmetric: bool) -> Levels:
    """Return the levels for what a histogram saw: uint8, or, if `symmetric`, int8 around zero for signed values."""
    if symmetric and histogram.low < 0:
        low, high = find_range(histogram, calibration, True)
        scale, _ = scale_and_zero_point(low, high, True)
        return Levels(scale, 0, True)
    low, high = find_range(histogram, calibration, False)
    scale, zero_point = scale_and_zero_point(low, high, False)
    return Levels(scale, zero_point + 128, False)


def graph_arguments(program: ExportedProgram, inputs: Mapping[str, Tensor]) -> list[Any]:
    """Return what the graph's placeholders stand for, in order: weights, buffers, constants, then the inputs."""
    stored = {**program.constants, **program.state_dict}
    given = iter(inputs.values())
    return [
        next(given) if spec.kind is InputKind.USER_INPUT else stored[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]


def named_batches(model: nn.Module, names: Sequence[str], batches: Iterable[Batch]) -> Iterable[dict[str, Tensor]]:
    """Yield the tensors that `names` (the captured inputs, in order) stand for in each batch.

    A batch is a tensor, a dict or a sequence of `forward`'s arguments. Raises QuantizationError where one is missing.
    """
    parameters = list(inspect.signature(model.forward).parameters)
    for number, batch in enumerate([batches] if isinstance(batches, Tensor | Mapping) else batches, 1):
        if isinstance(batch, Tensor):
            batch = (batch,)
        given = dict(batch) if isinstance(batch, Mapping) else dict(zip(parameters, batch, strict=False))
        missing = [name for name in names if not isinstance(given.get(name), Tensor)]
        if missing:
            raise QuantizationError(
                f"calibration batch {number} lacks the input '{missing[0]}'", found=sorted(given), wanted=list(names)
            )
        yield {name: given[name] for name in names}


class _Watching(Interpreter):
    def __init__(self, module: torch.fx.GraphModule, histograms: Mapping[Node, Histogram]) -> None:
        super().__init__(module)
        self._histograms = histograms

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        histogram = self._histograms.get(node)
        if histogram is not None:
            histogram.observe(result)
        return result
