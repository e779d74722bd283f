"""A captured graph in ONNX's operators: translated, its constants folded, cleaned of all that tells of this machine.

Values keep the names of the graph's nodes, by which `first_difference.py` finds its way back. Format:
https://onnx.ai/onnx/repo-docs/IR.html. Not here: files and checks (`onnx_export.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from deepseek import __version__
from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.capture import quiet
from deepseek.export.signature import Axes

if TYPE_CHECKING:
    import onnx

Translations = Mapping[Any, Callable[..., Any]]
"""Functions that write an operator of torch in ONNX's, by operator."""


def translate(
    program: ExportedProgram,
    axes: Axes,
    outputs: Sequence[str],
    opset: int,
    translations: Translations | None = None,
) -> torch.onnx.ONNXProgram:
    """Return the program in ONNX's operators, with the decomposed graph it was made from (`exported_program`).

    `axes` names the inputs, in their order, and their free dimensions; `translations` come on top of our own.
    Raises ExportError, naming operator and module, for what has no ONNX form.
    """
    _prepare(program)
    free = {name: {index: axis for index, axis in enumerate(axes[name]) if axis} for name in axes}
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(axes),
                output_names=list(outputs),
                dynamic_shapes=free,
                custom_translation_table={**_own_translations(), **(translations or {})},
            )
        except DeepSeekError:
            raise
        except Exception as error:
            raise _conversion_error(error) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned nothing", fix="update torch")
    return exported


def clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Set producer and metadata; drop the exporter's notes, half the size of small files and full of local paths."""
    import onnx

    for graph in _graphs(proto):
        for value in (*graph.value_info, *getattr(graph, "initializer", ())):
            _forget(value)
        for value in (*graph.input, *graph.output) if isinstance(graph, onnx.GraphProto) else ():
            _forget(value)
        for node in graph.node:
            _forget(node)
        _forget(graph)
    proto.ClearField("doc_string")
    proto.producer_name, proto.producer_version = "deepseek-framework", __version__
    onnx.helper.set_model_props(proto, {"torch": torch.__version__, **metadata})


def module_of(node: Node) -> str:
    """Return the dotted name of the module whose code made a node; empty for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""


def _forget(part: Any) -> None:
    part.ClearField("metadata_props")
    part.ClearField("doc_string")


def _graphs(proto: onnx.ModelProto) -> Iterable[Any]:
    """Yield the graph, those inside its nodes, and the local functions."""
    waiting: list[Any] = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _prepare(program: ExportedProgram) -> None:
    """Say plainly what kernels of torch take for granted."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            _fix_layout(node)
        elif node.target is torch.ops.aten.matmul.default:
            _fix_ranks(node)
    program.graph_module.recompile()


def _fix_layout(attention: Node) -> None:
    """Let nothing rely on how attention lays out its output: the plain form that ONNX gets does it otherwise."""
    with attention.graph.inserting_after(attention):
        plain = attention.graph.call_function(torch.ops.aten.clone.default, (attention,))
    plain.kwargs = {"memory_format": torch.contiguous_format}
    plain.meta = dict(attention.meta)
    attention.replace_all_uses_with(plain, delete_user_cb=lambda user: user is not plain)


def _fix_ranks(product: Node) -> None:
    """Give both sides of a batched product one rank and, for rows by a stack of matrices (experts), one batch: what
    OpenVINO's kernels want. A plain matrix on the right stays one."""
    ranks = [argument.meta["val"].dim() if isinstance(argument, Node) else 0 for argument in product.args]
    short = ranks.index(min(ranks))
    if ranks[0] == ranks[1] or min(ranks) < 2 or (short == 1 and ranks[1] == 2):
        return
    argument: Any = product.args[short]
    with product.graph.inserting_before(product):
        for _ in range(max(ranks) - min(ranks)):
            meta = dict(argument.meta)
            argument = product.graph.call_function(torch.ops.aten.unsqueeze.default, (argument, 0))
            argument.meta = {**meta, "val": meta["val"].unsqueeze(0)}
        if min(ranks) == 2 and max(ranks) == 3:
            stack = product.args[1 - short]
            size = stack.meta["val"].shape[0] if isinstance(stack, Node) else 1
            if isinstance(size, int):
                val = argument.meta["val"].expand(size, -1, -1)
                meta = argument.meta
                argument = product.graph.call_function(torch.ops.aten.expand.default, (argument, [size, -1, -1]))
                argument.meta = {**meta, "val": val}
    product.update_arg(short, argument)


def _own_translations() -> dict[Any, Callable[..., Any]]:
    return {torch.ops.aten._int_mm.default: _integer_product()}


def _integer_product() -> Callable[..., Any]:
    """Return the ONNX form of `torch._int_mm`. Its left side goes to uint8, for which ONNX Runtime has fast kernels."""
    op: Any = import_module("onnxscript").opset18
    int32, uint8 = 6, 2  # onnx.TensorProto.INT32, UINT8

    def int_mm(left: Any, right: Any) -> Any:
        shift = op.Constant(value_int=128)
        shifted = op.Cast(op.Add(op.Cast(left, to=int32), op.Cast(shift, to=int32)), to=uint8)
        return op.MatMulInteger(shifted, right, op.Cast(shift, to=uint8))

    return int_mm


def _conversion_error(error: BaseException) -> ExportError:
    root = error
    node: Node | None = None
    while True:
        node = _translated_node(root) or node
        if root.__cause__ is None:
            break
        root = root.__cause__
    reason = (str(root).strip().splitlines() or [type(root).__name__])[0]
    where = f" ({node.target} in module '{module_of(node)}')" if node is not None else ""
    return ExportError(
        "the model has no ONNX form",
        found=f"{reason}{where}",
        fix="replace that operation in the model, or serve it without ONNX (deepseek serve BUNDLE)",
    )


def _translated_node(error: BaseException) -> Node | None:
    """Return the node that torch's translation was at when it raised."""
    found, trace = None, error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        found = node if isinstance(node, Node) else found
        trace = trace.tb_next
    return found
