"""ONNX files that were run before they count: export, metadata, and a comparison with the original in ONNX Runtime.

Format: https://onnx.ai/onnx/repo-docs/IR.html. An int8 model keeps its integers (`MatMulInteger`). Not here: running
the file later (`runtimes.py`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.export import ExportedProgram

from deepseek import __version__
from deepseek.config import Config
from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.capture import capture, quiet
from deepseek.export.parity import Check, compare, default_checks
from deepseek.export.runtimes import EagerRuntime, OnnxRuntime
from deepseek.export.signature import Axes, ExampleInputs, check_axes, default_axes, named_inputs
from deepseek.files import atomic_path
from deepseek.lazy import require
from deepseek.nn.int8_swap import int8_specs
from deepseek.quantization.report import tensor_bytes

if TYPE_CHECKING:
    import onnx

_MAX_BYTES = 2_000_000_000  # one protobuf message ends at 2 GiB; beyond it weights need a second file
_TOLERANCE, _INT8_TOLERANCE = 1e-3, 1e-1


class OnnxConfig(Config):
    """How `export_onnx` exports and checks."""

    opset: int = Field(20, ge=18, le=23)
    """Version of the ONNX operator set."""

    tolerance: float | None = Field(None, gt=0)
    """Largest difference from the original, relative to its largest output where that is above 1.
    Unset: 0.001, or 0.1 for an int8 model, where a value between two integers may round either way."""


class OnnxReport(NamedTuple):
    """What was written and how it compared."""

    path: Path
    bytes: int
    opset: int
    runtime: str
    tolerance: float
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them (without the path)."""
        return {
            "format": "onnx",
            "bytes": self.bytes,
            "opset": self.opset,
            "runtime": self.runtime,
            "tolerance": self.tolerance,
            "checks": [check.to_dict() for check in self.checks],
        }


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: ExampleInputs | None = None,
    *,
    axes: Axes | None = None,
    checks: Sequence[Mapping[str, int]] | None = None,
    metadata: Mapping[str, str] | None = None,
    config: OnnxConfig | None = None,
) -> OnnxReport:
    """Export `model` to one ONNX file and run it in ONNX Runtime against the original before it takes its name.

    `axes` names the dimensions that may change, by default the batch, and the length of integer ids. `checks` are sets
    of their sizes; by default four, up to the model's `config.max_length` (at most 512). A bf16 or fp16 model is
    exported in fp32, which ONNX Runtime's CPU kernels need. Raises ExportError if the model can't be exported or has
    more than 2 GB, ParityError if the file answers differently: then nothing is written. Needs the extra [export].
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export")
    config = config or OnnxConfig()
    target = Path(path)
    model = _on_cpu_in_float32(model)
    _check_size(model)
    inputs = named_inputs(model, example_inputs)
    axes = check_axes(inputs, default_axes(inputs) if axes is None else axes)
    program = capture(model, inputs, axes)
    eager = EagerRuntime(model, inputs, axes)
    longest = getattr(getattr(model, "config", None), "max_length", None)
    checks = default_checks(inputs, axes, longest) if checks is None else checks
    tolerance = config.tolerance or (_INT8_TOLERANCE if int8_specs(model) else _TOLERANCE)
    outputs = [spec.name for spec in eager.signature.outputs]
    proto = _to_proto(program, axes, outputs, config.opset)
    _describe(proto, {"tolerance": str(tolerance), **(metadata or {})})
    with atomic_path(target) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        size = os.path.getsize(temporary)
        runtime = OnnxRuntime(temporary)
        results = compare(eager, runtime, inputs, axes, checks, tolerance)
        version = runtime.version
        del runtime  # holds the file open, which Windows does not rename
    return OnnxReport(target, size, config.opset, version, tolerance, results)


def _on_cpu_in_float32(model: nn.Module) -> nn.Module:
    tensors = list(model.state_dict().values())
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors):
        return copy.deepcopy(model).to("cpu", torch.float32)
    if any(tensor.device.type not in ("cpu", "meta") for tensor in tensors):
        return copy.deepcopy(model).to("cpu")
    return model


def _check_size(model: nn.Module) -> None:
    size = tensor_bytes(model)
    if size > _MAX_BYTES:
        raise ExportError(
            "the model is too large for one ONNX file",
            found=f"{size / 1e9:.2f} GB",
            wanted=f"at most {_MAX_BYTES / 1e9:.0f} GB",
            fix="quantize it to int8 first (deepseek.quantization.quantize_model)",
        )


def _to_proto(program: ExportedProgram, axes: Axes, outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    names = {name: {index: axis for index, axis in enumerate(axes[name]) if axis} for name in axes}
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(axes),
                output_names=list(outputs),
                dynamic_shapes=names,
                custom_translation_table={torch.ops.aten._int_mm.default: _integer_product()},
            )
        except DeepSeekError:
            raise
        except Exception as error:
            raise _conversion_error(error) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned nothing", fix="update torch")
    proto: onnx.ModelProto = exported.model_proto
    return proto


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
    while root.__cause__ is not None:
        root = root.__cause__
    reason = str(root).strip().splitlines() or [type(root).__name__]
    return ExportError(
        "the model has no ONNX form",
        found=reason[0],
        fix="replace that operation in the model, or serve it without ONNX (deepseek serve BUNDLE)",
    )


def _describe(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Set producer and metadata; drop the exporter's notes, half the size of small files and full of local paths."""
    import onnx

    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for values in (proto.graph.value_info, proto.graph.input, proto.graph.output, proto.graph.initializer):
        for value in values:
            value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.producer_name, proto.producer_version = "deepseek-framework", __version__
    onnx.helper.set_model_props(proto, {"torch": torch.__version__, **metadata})
