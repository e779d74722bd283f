"""ONNX files that were run before they count: export, metadata, and a comparison with the original in ONNX Runtime.

Format: https://onnx.ai/onnx/repo-docs/IR.html. A dynamic int8 model keeps its integers (`MatMulInteger`), a static one
becomes a graph of `QuantizeLinear` and `DequantizeLinear` (`qdq/`). Weights beyond 2 GB lie in a second file beside
the first. Not here: the translation (`onnx_translation.py`), running the file later (`runtimes/`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.export import ExportedProgram

from deepseek.config import Config
from deepseek.errors import DeepSeekError, ExportError, StorageError
from deepseek.export.axes import AxisNames, captured
from deepseek.export.capture import module_name
from deepseek.export.first_difference import difference_in
from deepseek.export.onnx_file import write_onnx
from deepseek.export.onnx_translation import Translations, clean, translate
from deepseek.export.parity import Check, Explain, compare, default_checks
from deepseek.export.runtimes import EagerRuntime, OnnxRuntime, Runtime
from deepseek.export.signature import Axes, ExampleInputs, Signature, evaluating, named_inputs
from deepseek.lazy import require
from deepseek.nn.int8_swap import int8_specs

_TOLERANCE, _INT8_TOLERANCE = 1e-4, 1e-1


class OnnxConfig(Config):
    """How `export_onnx` exports and checks."""

    opset: int = Field(20, ge=18, le=23)
    """Version of the ONNX operator set."""

    tolerance: float | None = Field(None, gt=0)
    """Largest difference from the original, relative to its largest output where that is above 1.
    Unset: 0.0001, or 0.1 for an int8 model, where a value between two integers may round either way."""


class OnnxReport(NamedTuple):
    """What was written and how it compared."""

    path: Path
    bytes: int
    opset: int
    runtime: str
    tolerance: float
    checks: tuple[Check, ...]
    axes: dict[str, tuple[str | None, ...]]
    """For each input the names of its dimensions that may change, None for fixed ones."""

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
    calibration_data: Iterable[Any] | None = None,
) -> OnnxReport:
    """Export `model` to ONNX and run the file in ONNX Runtime against the original before it takes its name.

    `axes` names the dimensions that may change, by default what the template tells, else the batch and every length
    that the model's code leaves free. `checks` are sets of their sizes; by default four, up to the model's
    `config.max_length` (at most 512). A bf16 or fp16 model is exported in fp32, which ONNX Runtime's CPU kernels need.
    A model with static int8 layers becomes a graph of Q/DQ nodes (`qdq/`), compared with that graph's run in PyTorch;
    `calibration_data`, batches like those it was quantized with, let more of its edges be 8-bit.
    Weights beyond 2 GB go to a second file, `PATH.*.data`, which the first names and which must stay beside it.
    Raises ExportError if the model can't be exported, ParityError, naming the first node that differs, if the file
    answers differently, StorageError if it can't be written: then nothing is. Needs the extra [export].
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export")
    config, target = config or OnnxConfig(), Path(path)
    check_place(target)
    model = on_cpu_in_float32(model)
    inputs = tried_inputs(model, example_inputs)
    original, program, free, translations = original_form(model, inputs, axes, calibration_data)
    longest = getattr(getattr(model, "config", None), "max_length", None)
    checks = default_checks(inputs, free, longest) if checks is None else checks
    tolerance = config.tolerance or (_INT8_TOLERANCE if int8_specs(model) else _TOLERANCE)
    names = [spec.name for spec in original.signature.outputs]
    exported = translate(program, free, names, config.opset, translations)
    proto, decomposed = exported.model_proto, exported.exported_program
    del exported
    clean(proto, {"tolerance": str(tolerance), **(metadata or {})})

    def compared(file: Path) -> tuple[tuple[Check, ...], str]:
        runtime = OnnxRuntime(file)
        explain = explanation(decomposed, file, tolerance)
        return compare(original, runtime, inputs, free, checks, tolerance, explain), runtime.version

    (results, version), size = write_onnx(proto, target, compared)
    return OnnxReport(target, size, config.opset, version, tolerance, results, free)


class OriginalForm(NamedTuple):
    """What a file must answer like, its graph, the free axes of that, and the ONNX forms of operators of our own."""

    runtime: Runtime
    program: ExportedProgram
    axes: AxisNames
    translations: Translations


def original_form(
    model: nn.Module, inputs: Mapping[str, Tensor], axes: Axes | None, calibration_data: Iterable[Any] | None
) -> OriginalForm:
    """Return what a file must answer like: a model with static int8 layers as its quantized graph, others as they are.

    Raises ExportError for calibration data that the model has no use for.
    """
    if not any(spec.get("mode") == "static" for spec in int8_specs(model).values()):
        if calibration_data is not None:
            raise ExportError(
                "calibration_data is for models with static int8 layers",
                found=type(model).__name__,
                fix="leave it out, or quantize with QuantConfig(method='static')",
            )
        program, free = captured(model, inputs, axes)
        return OriginalForm(OutputsApart(EagerRuntime(model, inputs, free)), program, free, {})
    from deepseek.export.qdq import quantized_program
    from deepseek.export.qdq.translation import translations

    quantized = quantized_program(model, inputs, axes, calibration_data)
    free = {name: tuple(names) for name, names in quantized.axes.items()}
    rounded = _Rounded(EagerRuntime(model, inputs, free).signature, quantized.run)
    return OriginalForm(OutputsApart(rounded), quantized.program, free, translations())


class _Rounded:
    """The quantized graph in PyTorch, by definition what its file answers."""

    def __init__(self, signature: Signature, run: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        self.signature, self._run = signature, run

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        self.signature.check(inputs)
        return self._run(inputs)


class OutputsApart:
    """A runtime whose outputs have names of their own: an ONNX graph has each name once, so `memory` may go in and
    `memory_out` come out."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        inputs, outputs, limits = runtime.signature
        taken = {spec.name for spec in inputs}
        self._names = {s.name: f"{s.name}_out" if s.name in taken else s.name for s in outputs}
        renamed = tuple(spec._replace(name=self._names[spec.name]) for spec in outputs)
        self.signature = Signature(inputs, renamed, limits)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        return {self._names[name]: tensor for name, tensor in self._runtime.run(inputs).items()}


def explanation(program: ExportedProgram | None, file: Path, tolerance: float, *, openvino: bool = False) -> Explain:
    """Return what tells, for inputs at which `file` differs from the original, where the difference begins."""

    def explain(inputs: Mapping[str, Tensor]) -> str | None:
        found = difference_in(program, file, inputs, tolerance, openvino=openvino)
        if found is None:
            return "the captured graph itself differs: the model is random, or Python fixed a value when it was traced"
        return str(found)

    return explain


def check_place(target: Path, folder_with: Collection[str] | None = None) -> None:
    """Raise StorageError where `target` can't be written, before the work that leads there.

    `target` is a file, or with `folder_with` a folder that, if it is there, holds no other names.
    """
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(f"can't write {target}", found=f"{parent} can't be written", fix="choose another path")
    if folder_with is None and target.is_dir():
        raise StorageError(f"can't write {target}", found="a folder of that name", fix="choose another path")
    if folder_with is not None and target.exists():
        others = sorted({path.name for path in target.iterdir()} - set(folder_with)) if target.is_dir() else ["a file"]
        if others:
            raise StorageError(f"can't write {target}", found=others[:5], fix="choose a new folder")


def tried_inputs(model: nn.Module, example: ExampleInputs | None) -> dict[str, Tensor]:
    """Return the example inputs by name. Raises ExportError, or the model's own, if it can't take them."""
    inputs = named_inputs(model, example)
    try:
        with evaluating(model):
            model(**inputs)
    except DeepSeekError:
        raise
    except Exception as error:
        inside = module_name(error, model)
        raise ExportError(
            "the model can't take its example inputs",
            found=str(error).strip().splitlines()[0] + (f" (in module '{inside}')" if inside else ""),
            wanted={name: tuple(tensor.shape) for name, tensor in inputs.items()},
            fix="give example_inputs of the shapes and dtypes that the model takes",
        ) from error
    return inputs


def on_cpu_in_float32(model: nn.Module) -> nn.Module:
    """Return the model, or a copy of it on the CPU and without 16-bit weights. Raises ExportError without weights."""
    tensors = list(model.state_dict().values())
    if any(tensor.is_meta for tensor in tensors):
        raise ExportError("the model has no weights", found="tensors on the device 'meta'", fix="load them first")
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors):
        return copy.deepcopy(model).to("cpu", torch.float32)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return copy.deepcopy(model).to("cpu")
    return model
