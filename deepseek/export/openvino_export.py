"""OpenVINO's intermediate representation (IR): `model.xml`, the graph, and `model.bin`, its weights, in one folder.

Made from the ONNX form, so that names and free dimensions are the same, and run in OpenVINO against the original before
the folder takes its name. Format: https://docs.openvino.ai/2025/documentation/openvino-ir-format.html. Not here:
running it later (`runtimes/`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ExportError
from deepseek.export.capture import quiet
from deepseek.export.onnx_export import (
    OriginalForm,
    check_place,
    explanation,
    on_cpu_in_float32,
    original_form,
    tried_inputs,
)
from deepseek.export.onnx_file import write_onnx
from deepseek.export.onnx_translation import clean, translate
from deepseek.export.parity import Check, Explain, compare, default_checks
from deepseek.export.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime
from deepseek.export.signature import Axes, ExampleInputs
from deepseek.files import atomic_folder
from deepseek.lazy import require
from deepseek.nn.int8_swap import int8_specs

_TOLERANCE, _INT8_TOLERANCE = 1e-4, 1e-1
_FILES = {"model.xml", "model.bin"}
_OPSET = 20


class OpenVinoConfig(Config):
    """How `export_openvino` exports and checks."""

    half_weights: bool = False
    """Store weights as fp16, half the bytes; they are fp32 again in the computation."""

    tolerance: float | None = Field(None, gt=0)
    """Largest difference from the original, relative to its largest output where that is above 1.
    Unset: 0.0001, or 0.01 with `half_weights`, or 0.1 for an int8 model."""


class OpenVinoReport(NamedTuple):
    """What was written and how it compared."""

    path: Path
    """The graph, `FOLDER/model.xml`."""
    bytes: int
    runtime: str
    tolerance: float
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them (without the path)."""
        return {
            "format": "openvino",
            "bytes": self.bytes,
            "runtime": self.runtime,
            "tolerance": self.tolerance,
            "checks": [check.to_dict() for check in self.checks],
        }


def export_openvino(
    model: nn.Module | str | Path,
    folder: str | Path,
    example_inputs: ExampleInputs | None = None,
    *,
    axes: Axes | None = None,
    checks: Sequence[Mapping[str, int]] | None = None,
    config: OpenVinoConfig | None = None,
    calibration_data: Iterable[Any] | None = None,
) -> OpenVinoReport:
    """Write `model` as OpenVINO IR, run there against the original, in fp32, before the folder takes its name.

    `axes`, `checks` and `calibration_data` as for `export_onnx`. `model` may be the path of an ONNX file: then that
    file, in ONNX Runtime, is the original, and example inputs and axes must be given. A folder that holds an earlier
    export is replaced.
    Raises ExportError if there is no such form, ParityError, naming the first node that differs, if it answers
    differently, StorageError if the folder can't be written or holds other files: then nothing is. Needs [export].
    """
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        require(package, "export")
    config, target = config or OpenVinoConfig(), Path(folder)
    check_place(target, folder_with=_FILES)
    if isinstance(model, nn.Module):
        model = on_cpu_in_float32(model)
        inputs = tried_inputs(model, example_inputs)
        return _from_model(model, target, inputs, original_form(model, inputs, axes, calibration_data), checks, config)
    if not isinstance(example_inputs, Mapping) or axes is None:
        raise ExportError("an ONNX file does not tell its inputs", wanted="example_inputs by name, and axes")
    original = OnnxRuntime(model)
    checks = default_checks(example_inputs, axes) if checks is None else checks
    job = _Job(original, dict(example_inputs), axes, checks, config.tolerance or _default_tolerance(config, False))
    return _written(Path(model), target, job, config, None)


def save_ir(onnx: Path, path: Path, *, half_weights: bool) -> None:
    """Convert an ONNX file to IR: `path`, and its weights beside it (`.bin`). Raises ExportError if it can't be."""
    openvino = require("openvino", "export")
    try:
        with quiet():
            model = openvino.Core().read_model(onnx)
            _name_outputs(model)
            openvino.save_model(model, path, compress_to_fp16=half_weights)
    except RuntimeError as error:
        raise ExportError(
            "the model has no OpenVINO form", found=_last_line(error), fix="serve the ONNX file instead"
        ) from error


class _Job(NamedTuple):
    """What an IR is compared with, and how."""

    original: Runtime
    inputs: dict[str, Tensor]
    axes: Axes
    checks: Sequence[Mapping[str, int]]
    tolerance: float


def _from_model(
    model: nn.Module,
    target: Path,
    inputs: dict[str, Tensor],
    form: OriginalForm,
    checks: Sequence[Mapping[str, int]] | None,
    config: OpenVinoConfig,
) -> OpenVinoReport:
    original, program, free, translations = form
    longest = getattr(getattr(model, "config", None), "max_length", None)
    checks = default_checks(inputs, free, longest) if checks is None else checks
    names = [spec.name for spec in original.signature.outputs]
    exported = translate(program, free, names, _OPSET, translations)
    proto = exported.model_proto
    clean(proto, {})
    tolerance = config.tolerance or _default_tolerance(config, bool(int8_specs(model)))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        write_onnx(proto, file, lambda _: None)
        explain = explanation(exported.exported_program, file, tolerance, openvino=True)
        return _written(file, target, _Job(original, inputs, free, checks, tolerance), config, explain)


def _written(onnx: Path, target: Path, job: _Job, config: OpenVinoConfig, explain: Explain | None) -> OpenVinoReport:
    """Convert the ONNX file to a folder that becomes `target` once it answers like the original."""
    with atomic_folder(target, replace=True) as temporary:
        path = temporary / "model.xml"
        save_ir(onnx, path, half_weights=config.half_weights)
        runtime = OpenVinoRuntime(path)
        results = compare(job.original, runtime, job.inputs, job.axes, job.checks, job.tolerance, explain)
        size, version = sum(file.stat().st_size for file in temporary.iterdir()), runtime.version
        del runtime  # holds the weights' file open, which Windows does not rename
    return OpenVinoReport(target / "model.xml", size, version, job.tolerance, results)


def _name_outputs(model: Any) -> None:
    """Leave each output the name it has in the ONNX file, where OpenVINO knows it by several."""
    for port in model.outputs:
        name = port.node.get_friendly_name().partition("/sink_port")[0]
        if len(port.get_names()) > 1 and name in port.get_names():
            port.get_tensor().set_names({name})


def _default_tolerance(config: OpenVinoConfig, int8: bool) -> float:
    return _INT8_TOLERANCE if int8 else 1e-2 if config.half_weights else _TOLERANCE


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
