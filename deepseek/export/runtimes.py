"""Things that run a model and look the same to evaluation, parity checks and serving: eager PyTorch and ONNX Runtime.

Not here: making the files that they run (`onnx_export.py`, `static.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from deepseek.errors import ExportError
from deepseek.export.signature import (
    Axes,
    Signature,
    TensorSpec,
    axis_sizes,
    evaluating,
    output_tensors,
    resized,
    single_output_name,
)
from deepseek.lazy import require

if TYPE_CHECKING:
    import onnxruntime

_ONNX_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}


class Runtime(Protocol):
    """Runs one model. Tensors go in and come out by name, on the CPU."""

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of inputs and outputs."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        ...


class EagerRuntime:
    """PyTorch itself, in eval mode and without gradients."""

    def __init__(self, model: nn.Module | Callable[..., Any], example: Mapping[str, Tensor], axes: Axes) -> None:
        self._model = model
        self._single = single_output_name(model)
        inputs = tuple(TensorSpec(n, t.dtype, _symbolic(t, axes[n])) for n, t in example.items())
        self.signature = Signature(inputs, ())
        self.signature = Signature(inputs, self._output_specs(example, axes))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.signature.check(inputs)
        with evaluating(self._model):
            return output_tensors(self._model(**inputs), self._single)

    def _output_specs(self, example: Mapping[str, Tensor], axes: Axes) -> tuple[TensorSpec, ...]:
        """Run at two sets of sizes: an output dimension that changes between them is named after its axis."""
        sizes = axis_sizes(example, axes)
        shorter = {axis: max(1, size - 1 - index) for index, (axis, size) in enumerate(sizes.items())}
        first, second = (self.run(resized(example, axes, chosen)) for chosen in (sizes, shorter))
        axis_of = {(sizes[axis], shorter[axis]): axis for axis in reversed(sizes)}
        specs = []
        for name, tensor in first.items():
            pairs = enumerate(zip(tensor.shape, second[name].shape, strict=True))
            shape = tuple(
                pair[0] if pair[0] == pair[1] else axis_of.get(pair, f"{name}_{index}") for index, pair in pairs
            )
            specs.append(TensorSpec(name, tensor.dtype, shape))
        return tuple(specs)


class OnnxRuntime:
    """ONNX Runtime on the CPU. Raises ExportError if the file can't be loaded, MissingExtraError without [export]."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        require("onnxruntime", "export")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime can't load {path}", found=str(error).splitlines()[0], fix="export the model again"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.signature = Signature(tuple(map(_spec, inputs)), tuple(map(_spec, outputs)))
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.signature.check(inputs)
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        names = [spec.name for spec in self.signature.outputs]
        return {
            name: torch.from_numpy(array) for name, array in zip(names, self._session.run(names, arrays), strict=True)
        }


def _symbolic(tensor: Tensor, names: Any) -> tuple[int | str, ...]:
    return tuple(size if name is None else name for size, name in zip(tensor.shape, names, strict=True))


def _spec(argument: Any) -> TensorSpec:
    if argument.type not in _ONNX_DTYPES:
        raise ExportError(f"'{argument.name}' has a type we can't run", found=argument.type, wanted=list(_ONNX_DTYPES))
    shape = tuple(f"{argument.name}_{i}" if size is None else size for i, size in enumerate(argument.shape))
    return TensorSpec(argument.name, _ONNX_DTYPES[argument.type], shape)
