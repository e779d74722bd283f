"""A static int8 model as a graph of rounded edges: the form that runtimes with integer kernels want.

The graph rounds to 8 bits what the model's int8 layers read, and further edges besides (`placement.py`). Its run in
torch is exact by definition; the ONNX file of it (`translation.py`) answers the same within one quantum. An operation
that is not known here keeps floats: then less is in 8 bits, and nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from deepseek.config import Config
from deepseek.errors import QuantizationError
from deepseek.export.axes import captured
from deepseek.export.capture import quiet
from deepseek.export.qdq.attention import ATTENTION
from deepseek.export.qdq.calibration import find_levels, graph_arguments, named_batches, observe
from deepseek.export.qdq.graph import QUANTIZE, insert_after, levels_of, quantized_nodes, reason_of
from deepseek.export.qdq.layers import captured_form, is_static
from deepseek.export.qdq.placement import Wish, hoist, merge, wishes
from deepseek.export.signature import Axes, evaluating, output_tensors, single_output_name
from deepseek.quantization.calibrate import Batch
from deepseek.quantization.config import Calibration


class QdqConfig(Config):
    """Which further edges `quantized_program` rounds, and how their levels are found."""

    calibration: Calibration = "mse"
    """How the levels of a further edge follow from what calibration saw there."""

    symmetric: bool = False
    """Signed edges are rounded to levels around zero; otherwise from their smallest to their largest value."""

    attention: bool = True
    """The products of queries and keys are rounded too."""

    edges: bool = True
    """Whether any further edges are rounded at all; without, only what int8 layers read is."""


class Edge(NamedTuple):
    """One rounded edge: the node whose values it carries, its levels, and why it is rounded."""

    source: str
    scale: float
    zero_point: int
    signed: bool
    reason: str


@dataclass(frozen=True)
class QuantizedProgram:
    """`program` holds the graph; `edges` what it rounds; `layers` the int8 layers in it, by module name."""

    program: ExportedProgram
    axes: Axes
    edges: tuple[Edge, ...]
    layers: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name: the reference of every exported form. Inputs by name, in any allowed shape."""
        ordered = {name: inputs[name] for name in self.axes}
        with torch.no_grad():
            flat = Interpreter(self.program.graph_module).run(*graph_arguments(self.program, ordered))
        return dict(zip(self.outputs, (value for value in flat if value is not None), strict=True))

    def to_onnx(self, path: str | Path, opset: int = 20) -> Path:
        """Write the graph as an ONNX file with QuantizeLinear and DequantizeLinear nodes; return its path.

        An output that has an input's name becomes `NAME_out`. Raises ExportError if an operation has no ONNX form,
        MissingExtraError without the extra [export].
        """
        from deepseek.export.qdq.translation import write_quantized

        names = [f"{name}_out" if name in self.axes else name for name in self.outputs]  # a file has each name once
        return write_quantized(self.program, self.axes, names, Path(path), opset, {})


def quantized_program(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Axes | None = None,
    calibration: Iterable[Batch] | None = None,
    config: QdqConfig | None = None,
) -> QuantizedProgram:
    """Return the graph of a model with static int8 layers (`QuantConfig(method="static")`), with rounded edges.

    `inputs` are examples by name; `axes` names their dimensions that may change (None: all that can, see
    `deepseek.export.axes.captured`). `calibration`: batches like those the layers were calibrated with; without them
    only edges whose levels are known already are rounded. The model is not changed. Raises QuantizationError if it has
    no static int8 layer or a batch does not fit, ExportError if it can't be captured.
    """
    config = config or QdqConfig()
    with captured_form(model) as layers:
        if not layers and not any(is_static(module) for module in model.modules()):
            raise QuantizationError(
                "the model has no static int8 layer",
                found=type(model).__name__,
                fix="quantize_model(model, QuantConfig(method='static', quant_scheme='asymmetric'), batches)",
            )
        names = _output_names(model, inputs)
        program, free = captured(model, inputs, axes)
    with quiet():
        program = program.run_decompositions(dict(ATTENTION) if config.attention and config.edges else {})
    graph = program.graph_module.graph
    merge(graph)
    hoist(graph)
    merge(graph)
    if config.edges:
        batches = None if calibration is None else named_batches(model, list(inputs), calibration)
        _round_further(program, config, batches)
        hoist(graph)
        merge(graph)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    rounded = [node for node in graph.nodes if node.target is QUANTIZE]
    edges = tuple(Edge(str(node.args[0]), *levels_of(node), reason_of(node)) for node in rounded)
    return QuantizedProgram(program, free, edges, tuple(layers), names)


def _round_further(program: ExportedProgram, config: QdqConfig, batches: Iterable[Mapping[str, Tensor]] | None) -> None:
    """Put in the QUANTIZE nodes that were wished for."""
    graph = program.graph_module.graph
    wanted = wishes(graph, attention=config.attention)
    unknown = dict.fromkeys(wish.source for wish in wanted if not any(True for _ in quantized_nodes(wish.source)))
    histograms = observe(program, unknown, batches) if unknown and batches is not None else {}
    for wish in _whole(wanted, {node for node in unknown if node not in histograms}):
        source = wish.source
        rounded = next(quantized_nodes(source), None)
        if rounded is None:
            levels = find_levels(histograms[source], config.calibration, config.symmetric)
            rounded = insert_after(graph, source, levels, wish.reason)
        wish.reader.update_arg(wish.argument, rounded)


def _whole(wanted: Sequence[Wish], unknown: set[Node]) -> list[Wish]:
    """Return the wishes of those readers of which every edge has levels: half an integer product is a float one."""
    without = {wish.reader for wish in wanted if wish.source in unknown}
    return [wish for wish in wanted if wish.reader not in without]


def _output_names(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    with evaluating(model):
        return tuple(output_tensors(model(**inputs), single_output_name(model)))
