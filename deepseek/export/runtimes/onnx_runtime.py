"""ONNX Runtime: its CPU kernels, and those of GPUs and phones where the installed build has them.

Execution providers: https://onnxruntime.ai/docs/execution-providers/. Not here: writing files (`onnx_export.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.errors import ExportError, did_you_mean
from deepseek.export.runtimes.runtime import Settings
from deepseek.export.signature import Signature, TensorSpec
from deepseek.lazy import require

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Our short names of execution providers."""

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}


class OnnxRuntime:
    """One ONNX file in ONNX Runtime, on the CPU or on the provider named (`tensorrt`, `cuda`, `coreml`, ...).

    Raises ExportError if the file can't be loaded or the provider is absent, MissingExtraError without [export].
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, *, provider: str = "cpu", settings: Settings | None = None
    ) -> None:
        require("onnxruntime", "export")
        import onnxruntime

        settings = settings or Settings()
        chosen = _present(provider)
        if not os.path.isfile(path):
            raise ExportError(f"ONNX Runtime can't load {path}", found="no such file", fix="export the model first")
        options = _options(settings._replace(threads=threads if threads is not None else settings.threads))
        providers = [chosen] if chosen == PROVIDERS["cpu"] else [chosen, PROVIDERS["cpu"]]
        try:
            self._session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=providers
            )
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime can't load {path}", found=str(error).splitlines()[0], fix="export the model again"
            ) from error
        if chosen not in self._session.get_providers():  # it falls back to the CPU without a word
            raise ExportError(
                f"the provider '{provider}' of ONNX Runtime does not start here",
                found=self._session.get_providers(),
                fix="install its driver and libraries, or use the provider 'cpu'",
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.signature = Signature(tuple(map(_spec, inputs)), tuple(map(_spec, outputs)))
        self._names = [spec.name for spec in self.signature.outputs]
        # the object behind the session: the session's own `run` looks through the inputs again, for 1 us each time
        self._run: Callable[..., list[np.ndarray]] = getattr(self._session, "_sess", self._session).run
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature, ExportError if the file does not run."""
        self.signature.check(inputs)
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        return {name: torch.from_numpy(array) for name, array in self.run_arrays(arrays).items()}

    def run_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on arrays that were checked before; may be called from several threads at a time.

        Raises ExportError if the file does not run on them.
        """
        try:
            return dict(zip(self._names, self._run(self._names, arrays, None), strict=True))
        except Exception as error:
            raise run_error("ONNX Runtime", arrays, error) from error


def run_error(runtime: str, inputs: Mapping[str, Tensor | np.ndarray], error: Exception) -> ExportError:
    """Return the typed form of what a runtime says of a run."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ExportError(
        f"{runtime} can't run the file at { ({name: tuple(value.shape) for name, value in inputs.items()}) }",
        found=lines[-1][:300],
        fix="export the model with the dimensions that change named in `axes`",
    )


def providers_present() -> list[str]:
    """Return the short names of the execution providers of the installed ONNX Runtime; empty where there is none."""
    try:
        import onnxruntime
    except ImportError:
        return []
    available = set(onnxruntime.get_available_providers())
    return [name for name, provider in PROVIDERS.items() if provider in available]


def _present(provider: str) -> str:
    if provider not in PROVIDERS:
        raise ExportError(
            f"ONNX Runtime has no provider '{provider}'", found=repr(provider), fix=did_you_mean(provider, PROVIDERS)
        )
    present = providers_present()
    if provider not in present:
        raise ExportError(
            f"the installed ONNX Runtime lacks the provider '{provider}'",
            found=f"it has {', '.join(present)}",
            wanted=PROVIDERS[provider],
            fix="install the build that has it (onnxruntime-gpu for cuda and tensorrt)",
        )
    return PROVIDERS[provider]


def _options(settings: Settings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    if settings.spinning is not None:
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    for axis, size in settings.sizes.items():
        options.add_free_dimension_override_by_name(axis, size)
    return options


def _spec(argument: Any) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise ExportError(f"'{argument.name}' has a type we can't run", found=argument.type, wanted=list(_DTYPES))
    shape = tuple(f"{argument.name}_{i}" if size is None else size for i, size in enumerate(argument.shape))
    return TensorSpec(argument.name, _DTYPES[argument.type], shape)
