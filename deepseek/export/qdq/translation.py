"""A quantized graph as an ONNX file: QuantizeLinear and DequantizeLinear around every rounded edge, int8 weights.

Format: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and onnx__DequantizeLinear.html. Not here: comparing
the file with the model (`deepseek.export.onnx_export`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from deepseek.export.onnx_file import write_onnx
from deepseek.export.onnx_translation import clean, translate
from deepseek.export.qdq.graph import QUANTIZE, WEIGHT
from deepseek.export.signature import Axes
from deepseek.lazy import require

_UINT8, _INT8 = 2, 3  # onnx.TensorProto.UINT8, INT8


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the ONNX forms of our two operations, as `deepseek.export.onnx_translation.translate` takes them."""
    op: Any = import_module("onnxscript").opset18
    make_tensor: Any = import_module("onnx").helper.make_tensor

    def quantize_dequantize(x: Any, scale: float, zero_point: int, signed: bool) -> Any:
        step = op.Constant(value_float=scale)
        zero = op.Constant(value=make_tensor("zero_point", _INT8 if signed else _UINT8, [], [zero_point]))
        return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)

    def dequantize_weight(weight: Any, scale: Any, axis: int) -> Any:
        return op.DequantizeLinear(weight, scale, axis=axis)

    return {QUANTIZE: quantize_dequantize, WEIGHT: dequantize_weight}


def write_quantized(
    program: ExportedProgram,
    axes: Axes,
    outputs: Sequence[str],
    path: Path,
    opset: int,
    metadata: Mapping[str, str],
) -> Path:
    """Write the graph to `path`, whole or not at all.

    Raises ExportError if an operation has no ONNX form, MissingExtraError without the extra [export].
    """
    for package in ("onnx", "onnxscript"):
        require(package, "export")
    proto = translate(program, axes, outputs, opset, translations()).model_proto
    clean(proto, metadata)
    write_onnx(proto, path, lambda file: file)
    return path
