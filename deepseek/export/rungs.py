"""The rungs of the parity ladder: how each form of a bundle comes about. Not here: holding them against each other
(`ladder.py`).

A file that the bundle keeps in `exports/` is the one that is checked; where there is none, one is made in a folder that
goes away with the ladder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from deepseek import bundle as bundles
from deepseek.errors import DeepSeekError
from deepseek.export.onnx_export import OnnxConfig, export_onnx
from deepseek.export.runtimes.eager import EagerRuntime
from deepseek.export.runtimes.inductor import has_compiler
from deepseek.export.runtimes.onnx_runtime import OnnxRuntime
from deepseek.export.runtimes.opening import file_of
from deepseek.export.runtimes.openvino_runtime import OpenVinoRuntime
from deepseek.export.runtimes.runtime import Precision, Runtime
from deepseek.export.signature import Axes
from deepseek.export.static import Static, load_static
from deepseek.lazy import require
from deepseek.nn.int8_swap import int8_specs
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.quantize import quantize_model
from deepseek.quantization.report import tensor_bytes

_STATIC = QuantConfig(method="static", quant_scheme="asymmetric")  # unsigned activations: the integer kernels' own form
_ANY = OnnxConfig(tolerance=1e9)  # the ladder compares for itself, and names the layer


class NotHereError(Exception):
    """This rung can't be stood on here; the text says why."""


class Form(NamedTuple):
    """One form of the model, ready to run."""

    runtime: Runtime
    precision: Precision
    bytes: int
    """Of its weights, or of its file."""
    model: nn.Module | None = None
    """The PyTorch model, where it is one."""
    onnx: Path | None = None
    """The ONNX file, where it is one."""


class Ground(NamedTuple):
    """What all rungs stand on."""

    path: Path
    model: nn.Module
    example: Mapping[str, Tensor]
    axes: Axes
    workspace: Path
    calibration: Sequence[Any]
    """Batches for static int8."""
    made: dict[str, nn.Module]
    """Quantized models that an earlier rung made, by method."""

    @property
    def own(self) -> Precision:
        """The precision of the bundle as it is."""
        return "int8" if int8_specs(self.model) else "fp32"


def _eager(ground: Ground) -> Form:
    runtime = EagerRuntime(ground.model, ground.example, ground.axes)
    return Form(runtime, ground.own, tensor_bytes(ground.model), ground.model)


def _static(ground: Ground) -> Form:
    path = file_of(ground.path, "static", None) or ground.workspace / "model.pt2"
    if not path.is_file():
        if not has_compiler():
            raise NotHereError("there is no C++ compiler (g++ or clang++)")
        Static(ground.model, ground.example, axes=ground.axes).save(path, tolerance=1e9)
    return Form(load_static(path), ground.own, path.stat().st_size)


def _onnxruntime(ground: Ground) -> Form:
    path = _onnx_file(ground)
    return Form(OnnxRuntime(path), ground.own, path.stat().st_size, onnx=path)


def _openvino(ground: Ground, precision: Precision = "fp32") -> Form:
    require("openvino", "export")
    path = file_of(ground.path, "openvino", None) or _onnx_file(ground)
    stated = "int8" if ground.own == "int8" else precision
    return Form(OpenVinoRuntime(path, precision=precision), stated, _bytes(path), onnx=_if_onnx(path))


def _openvino_bf16(ground: Ground) -> Form:
    _only_float(ground)
    return _openvino(ground, "bf16")


def _bf16(ground: Ground) -> Form:
    _only_float(ground)
    runtime = EagerRuntime(ground.model, ground.example, ground.axes, "bf16")
    half = runtime.model if isinstance(runtime.model, nn.Module) else ground.model
    return Form(runtime, "bf16", tensor_bytes(half), half)


def _int8_dynamic(ground: Ground) -> Form:
    return _quantized(ground, QuantConfig(method="dynamic"))


def _int8_static(ground: Ground) -> Form:
    return _quantized(ground, _STATIC)


def _int8_bundle(ground: Ground) -> Form:
    _only_float(ground)
    path = ground.path
    beside = path.with_name(f"{path.stem}-int8.pt" if path.is_file() else f"{path.name}-int8")
    if not beside.exists():
        raise NotHereError(f"there is no {beside.name} beside the bundle")
    model = bundles.load(beside, device="cpu").model
    return Form(EagerRuntime(model, ground.example, ground.axes), "int8", tensor_bytes(model), model)


def _onnxruntime_int8(ground: Ground) -> Form:
    path = _int8_file(ground, "onnxruntime")
    return Form(OnnxRuntime(path), "int8", path.stat().st_size, onnx=path)


def _openvino_int8(ground: Ground) -> Form:
    require("openvino", "export")
    path = _int8_file(ground, "openvino")
    return Form(OpenVinoRuntime(path, precision="int8"), "int8", _bytes(path), onnx=_if_onnx(path))


RUNGS: Mapping[str, Callable[[Ground], Form]] = {
    "eager": _eager,
    "static": _static,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "bf16": _bf16,
    "openvino bf16": _openvino_bf16,
    "int8 dynamic": _int8_dynamic,
    "int8 static": _int8_static,
    "int8 bundle": _int8_bundle,
    "onnxruntime int8": _onnxruntime_int8,
    "openvino int8": _openvino_int8,
}
"""All rungs in the order they are climbed: `eager` is the bundle itself."""

EAGER_RUNGS = frozenset({"eager", "bf16", "int8 dynamic", "int8 static", "int8 bundle"})
"""Rungs that need no captured graph."""


def _only_float(ground: Ground) -> None:
    if ground.own == "int8":
        raise NotHereError("the bundle is int8 already")


def _onnx_file(ground: Ground) -> Path:
    path = file_of(ground.path, "onnxruntime", None) or ground.workspace / "model.onnx"
    if not path.is_file():
        export_onnx(ground.model, path, ground.example, axes=ground.axes, config=_ANY)
    return path


def _int8_file(ground: Ground, runtime: str) -> Path:
    """Return the bundle's own int8 file, else one of the model quantized here (static)."""
    _only_float(ground)
    path = file_of(ground.path, runtime, "int8") or ground.workspace / "model.int8.onnx"
    if not path.is_file():
        model = _quantize(ground, _STATIC)
        is_static = any(spec.get("mode") == "static" for spec in int8_specs(model).values())
        data = ground.calibration if is_static else None
        export_onnx(model, path, ground.example, axes=ground.axes, config=_ANY, calibration_data=data)
    return path


def _quantized(ground: Ground, config: QuantConfig) -> Form:
    _only_float(ground)
    model = _quantize(ground, config)
    return Form(EagerRuntime(model, ground.example, ground.axes), "int8", tensor_bytes(model), model)


def _quantize(ground: Ground, config: QuantConfig) -> nn.Module:
    model = ground.made.get(config.mode)
    if model is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that stay as they are
            model = quantize_model(ground.model, config, ground.calibration if config.mode == "static" else None)
        ground.made[config.mode] = model
    if not int8_specs(model):
        raise NotHereError("no layer of this model has an int8 form")
    return model


def _bytes(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def _if_onnx(path: Path) -> Path | None:
    return path if path.suffix == ".onnx" else None


def why_not(error: DeepSeekError) -> str:
    """Return a typed error in one line."""
    return error.problem if error.found is None else f"{error.problem} ({error.found})"
