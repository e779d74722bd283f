"""OpenVINO: its IR (`model.xml`) or an ONNX file, set for the least latency of one request.

Properties: https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference.html. Where a CPU has
bf16 instructions OpenVINO uses them unasked; here float32 means float32. Not here: writing the IR.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.errors import ExportError
from deepseek.export.runtimes.onnx_runtime import run_error
from deepseek.export.runtimes.runtime import Precision, Settings, in_float32
from deepseek.export.signature import Signature, TensorSpec
from deepseek.lazy import require

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "boolean": torch.bool,
}
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRuntime:
    """One file in OpenVINO. `device` is `cpu`, `gpu` or `npu`.

    Raises ExportError if the file can't be loaded or the device is absent, MissingExtraError without [export].
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        *,
        precision: Precision | None = None,
        device: str = "cpu",
        settings: Settings | None = None,
    ) -> None:
        openvino = require("openvino", "export")
        settings = settings or Settings()
        threads = threads if threads is not None else settings.threads
        core = openvino.Core()
        _check_device(core, device)
        if not os.path.isfile(path):
            raise ExportError(f"OpenVINO can't load {path}", found="no such file", fix="export the model first")
        hint = _HINTS[settings.rest if precision == "int8" else precision or "fp32"]
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if device == "cpu":
            config |= {"NUM_STREAMS": "1"} | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        try:
            model = core.read_model(str(path))
            if settings.sizes:
                model.reshape(_fixed(model, settings.sizes))
            compiled = core.compile_model(model, device.upper(), config)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise ExportError(
                f"OpenVINO can't load {path}", found=lines[-1][:300], fix="export the model again"
            ) from error
        self._request = compiled.create_infer_request()
        self.signature = Signature(tuple(map(_spec, compiled.inputs)), tuple(map(_spec, compiled.outputs)))
        self.version = f"openvino {openvino.__version__}"

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature, ExportError if the file does not run."""
        self.signature.check(inputs)
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        return in_float32({name: torch.from_numpy(array) for name, array in self.run_arrays(arrays).items()})

    def run_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on arrays that were checked before; from one thread at a time.

        Raises ExportError if the file does not run on them.
        """
        try:
            found = self._request.infer(arrays, share_inputs=True)
        except Exception as error:
            raise run_error("OpenVINO", arrays, error) from error
        return {spec.name: found[index] for index, spec in enumerate(self.signature.outputs)}


def _check_device(core: Any, device: str) -> None:
    """Raise ExportError, with what there is, for a device this machine lacks."""
    present = [name.partition(".")[0].lower() for name in core.available_devices]
    if device not in present:
        raise ExportError(
            f"OpenVINO has no device '{device}' here",
            found=f"it has {', '.join(present)}",
            fix="use the runtime 'openvino' for the CPU, or install the device's driver",
        )


def _fixed(model: Any, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the shapes of the model's inputs; `sizes` names dimensions as the signature does (`input_ids_1`)."""
    shapes = {}
    for port in model.inputs:
        name, shape = port.any_name, port.partial_shape
        shapes[name] = [
            sizes.get(f"{name}_{index}", -1) if shape[index].is_dynamic else shape[index].get_length()
            for index in range(len(shape))
        ]
    return shapes


def _spec(port: Any) -> TensorSpec:
    name, kind, shape = port.any_name, port.element_type.get_type_name(), port.partial_shape
    if kind not in _DTYPES:
        raise ExportError(f"'{name}' has a type we can't run", found=kind, wanted=list(_DTYPES))
    dims = [f"{name}_{i}" if shape[i].is_dynamic else shape[i].get_length() for i in range(len(shape))]
    return TensorSpec(name, _DTYPES[kind], tuple(dims))
