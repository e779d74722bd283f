"""Where an exported file begins to answer differently: the first node whose output is not what PyTorch computes.

The graph that was translated is run in PyTorch node by node; the same values are read out of the other runtime, a few
at a time, between the last that agreed and the first that did not. What is found is a node that differs although all
it reads agrees. Not here: the comparison that fails (`parity.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from deepseek.export.axes import captured
from deepseek.export.onnx_translation import module_of, translate
from deepseek.export.signature import Axes
from deepseek.lazy import require

_PROBES = 24  # values read in one run: each run builds the model anew, each value costs its memory

Probe = Callable[[Sequence[str], Mapping[str, Tensor]], dict[str, Tensor]]
"""Returns values inside a file by name, for inputs by name."""


class Difference(NamedTuple):
    """The first node that differs."""

    node: str
    """Its name in the captured graph, which is the name of its value in the ONNX file."""
    op: str
    """What it computes: torch's operator."""
    module: str
    """Dotted name of the module that it belongs to; empty for the model itself."""
    max_error: float
    """Largest absolute difference of its output."""

    def __str__(self) -> str:
        inside = f"module '{self.module}'" if self.module else "the model itself"
        return f"the first node to differ is '{self.node}' ({self.op}) in {inside}, by {self.max_error:.3g}"


def first_difference(
    model: nn.Module,
    path: str | Path,
    inputs: Mapping[str, Tensor],
    *,
    axes: Axes | None = None,
    tolerance: float = 1e-4,
    openvino: bool = False,
) -> Difference | None:
    """Return the first node of `model` whose output differs in the ONNX file at `path`, None where none does.

    `inputs`: the model's, by name, at which the two differ. `axes` as they were given to the export. The file runs in
    ONNX Runtime, or with `openvino` there. Differences above `tolerance`, relative to a value's largest entry where
    that is above 1, count. Raises ExportError if the model can't be captured. Needs the extra [export].
    """
    program, free = captured(model, inputs, axes)
    outputs = [f"{index}.output" for index in range(len(program.graph_signature.user_outputs))]
    decomposed = translate(program, free, outputs, _opset(path)).exported_program
    return difference_in(decomposed, path, inputs, tolerance, openvino=openvino) if decomposed is not None else None


def difference_in(
    program: ExportedProgram | None,
    path: str | Path,
    inputs: Mapping[str, Tensor],
    tolerance: float,
    *,
    openvino: bool = False,
) -> Difference | None:
    """Return the first node of a translated `program` (its decomposed form) that differs in the file at `path`."""
    if program is None:
        return None
    file = (_openvino_file if openvino else _onnx_file)(path)
    called = dict(zip(map(str, program.graph_signature.user_outputs), file.outputs, strict=True))  # renamed there
    nodes = {_value_name(node): node for node in program.graph.nodes if node.op == "call_function"}
    names = [
        name
        for name, node in nodes.items()
        if called.get(name, name) in file.values and isinstance(node.meta.get("val"), Tensor)
    ]
    search = _Search(program, file.probe, inputs, tolerance, called)
    low, high, found = -1, len(names), None  # what is at `low` agrees, what is at `high` does not
    while high - low > 1:
        step = -(-(high - low - 1) // _PROBES)
        chosen = range(low + step, high, step)
        errors = search.errors([names[index] for index in chosen])
        wrong = next((place for place, index in enumerate(chosen) if names[index] in errors), None)
        if wrong is None:
            low = chosen[-1]
            continue
        low, high = (chosen[wrong - 1] if wrong else low), chosen[wrong]
        found = _difference(nodes[names[high]], names[high], errors[names[high]])
    return _upstream(found, nodes, set(names), search)


class _Search:
    """Compares values of the program with those of the file."""

    def __init__(
        self,
        program: ExportedProgram,
        probe: Probe,
        inputs: Mapping[str, Tensor],
        tolerance: float,
        called: Mapping[str, str],
    ) -> None:
        self._program, self._probe, self._inputs, self._tolerance = program, probe, inputs, tolerance
        self._called = called

    def errors(self, names: Sequence[str]) -> dict[str, float]:
        """Return the largest difference of each value that differs too much."""
        wanted = _values(self._program, self._inputs, set(names))
        called = {name: self._called.get(name, name) for name in names}
        found = self._probe(list(called.values()), self._inputs)
        errors = {name: _error(wanted[name], found[called[name]]) for name in names if name in wanted}
        return {n: e for n, e in errors.items() if not e <= self._tolerance * max(1.0, _largest(wanted[n]))}


class _Keeping(Interpreter):
    """Runs a graph and keeps the named values."""

    def __init__(self, module: torch.fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.kept = names, dict[str, Tensor]()

    def run_node(self, n: Node) -> Any:
        """Run one node; keep what it returns if its value is asked for."""
        value = super().run_node(n)
        name = _value_name(n)
        if name in self.names and isinstance(value, Tensor):
            self.kept[name] = value.detach().clone()
        return value


def _values(program: ExportedProgram, inputs: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    kept = _Keeping(program.graph_module, names)
    given = iter(inputs.values())
    arguments: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            arguments.append(next(given))
        else:
            place = str(spec.target)
            state = program.state_dict.get(place)
            arguments.append(state if state is not None else program.constants[place])
    with torch.no_grad():
        kept.run(*arguments)
    return kept.kept


def _upstream(
    found: Difference | None, nodes: Mapping[str, Node], names: set[str], search: _Search
) -> Difference | None:
    """Go from a node that differs to the one it has that from: of several branches only one was looked at."""
    while found is not None:
        before = _sources(nodes[found.node], names)
        errors = search.errors(before) if before else {}
        first = next((name for name in before if name in errors), None)
        if first is None:
            break
        found = _difference(nodes[first], first, errors[first])
    return found


def _sources(node: Node, names: set[str]) -> list[str]:
    """Return the nearest values before a node that the file has too."""
    waiting, seen, found = list(node.all_input_nodes), set[Node](), list[str]()
    while waiting:
        source = waiting.pop()
        if source in seen or source.op != "call_function":
            continue
        seen.add(source)
        name = _value_name(source)
        if name in names:
            found.append(name)
        else:
            waiting += source.all_input_nodes
    return found


def _difference(node: Node, name: str, error: float) -> Difference:
    return Difference(name, str(node.target), module_of(node), error)


def _value_name(node: Node) -> str:
    """Return what a node's value is called in ONNX: one of several outputs by its number."""
    if node.op == "call_function" and node.target is operator.getitem:
        source, index = node.args
        return f"{source}__{index}"
    return node.name


def _error(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    one, two = wanted.to(torch.float64), found.to(torch.float64)
    same = (one == two) | (one.isnan() & two.isnan())
    return float(torch.where(same, 0.0, (one - two).abs()).max()) if wanted.numel() else 0.0


def _largest(values: Tensor) -> float:
    finite = values.to(torch.float64).nan_to_num(0.0, 0.0, 0.0)
    return float(finite.abs().max()) if values.numel() else 0.0


class _File(NamedTuple):
    """A file whose inner values can be read."""

    probe: Probe
    values: set[str]
    outputs: list[str]


def _onnx_file(path: str | Path) -> _File:
    """Return an ONNX file, run in ONNX Runtime."""
    onnx, onnxruntime = require("onnx", "export"), require("onnxruntime", "export")
    proto = onnx.load(str(path))
    known = {name for node in proto.graph.node for name in node.output if name}

    def probe(names: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        del changed.graph.output[:]
        types = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
        changed.graph.output.extend(types.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = _arrays(inputs, [value.name for value in session.get_inputs()])
        found = session.run(list(names), arrays)
        return {name: torch.from_numpy(array.copy()) for name, array in zip(names, found, strict=True)}

    return _File(probe, known, [value.name for value in proto.graph.output])


def _openvino_file(path: str | Path) -> _File:
    """Return an ONNX file, run in OpenVINO."""
    openvino = require("openvino", "export")
    core = openvino.Core()
    first = core.read_model(str(path))
    known = {name for op in first.get_ops() for port in op.outputs() for name in port.get_names()}

    def probe(names: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = core.read_model(str(path))
        model.add_outputs(list(names))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(_arrays(inputs, [name for port in compiled.inputs for name in port.get_names()]))
        return {name: torch.from_numpy(found[name].copy()) for name in names}

    return _File(probe, known, [port.any_name for port in first.outputs])


def _arrays(inputs: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Any]:
    return {name: inputs[name].detach().cpu().contiguous().numpy() for name in wanted if name in inputs}


def _opset(path: str | Path) -> int:
    proto = require("onnx", "export").load(str(path), load_external_data=False)
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
