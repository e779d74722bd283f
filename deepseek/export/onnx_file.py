"""An ONNX model on disk: one file, or, where its weights are too many for one, a second file of weights beside it.

The pair is as atomic as one file: the weights' name holds their checksum, so a new pair never overwrites the old one's,
and the model's file, renamed last, decides which weights count. Format:
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md. Not here: what is in the model (`onnx_translation.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from deepseek.errors import ExportError
from deepseek.files import atomic_path

if TYPE_CHECKING:
    import onnx

_MAX_BYTES = 2_000_000_000  # one protobuf message ends at 2 GiB
_SMALL = 1024  # bytes of a weight that stays in the model's file
_ALIGNMENT = 4096  # a page, so that runtimes can map the weights

Result = TypeVar("Result")


def write_onnx(proto: onnx.ModelProto, target: Path, check: Callable[[Path], Result]) -> tuple[Result, int]:
    """Write a model that `onnx.checker` and then `check` accept; return what `check` says, and the size in bytes.

    `check` gets the file under a temporary name. Whatever it raises, and what stood at `target`, stays. `proto` loses
    its weights where they go to the second file. Raises ExportError if the format's own checker refuses the model,
    StorageError if the disk does.
    """
    weights: Path | None = None
    new = False
    try:
        with atomic_path(target) as temporary:
            if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > _MAX_BYTES:
                weights, new = _move_weights(proto, target)
            temporary.write_bytes(proto.SerializeToString())
            _check(temporary)
            result = check(temporary)
            size = temporary.stat().st_size + (weights.stat().st_size if weights is not None else 0)
    except BaseException:
        if weights is not None and new:
            weights.unlink(missing_ok=True)
        raise
    for path in target.parent.iterdir():
        if path.name.startswith(f"{target.name}.") and path.suffix == ".data" and path != weights:
            path.unlink(missing_ok=True)
    return result, size


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "the exported file is not valid ONNX",
            found=str(error).strip().splitlines()[0],
            fix="try another opset (OnnxConfig(opset=...)), or serve the model without ONNX",
        ) from error


def _move_weights(proto: onnx.ModelProto, target: Path) -> tuple[Path, bool]:
    """Move large weights to a file beside `target`; return it, and whether it is new."""
    large = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > _SMALL]
    digest = hashlib.sha256()
    for part in _parts(large):
        digest.update(part)
    path = target.with_name(f"{target.name}.{digest.hexdigest()[:16]}.data")
    new = not path.exists()
    if new:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            _write(large, file)
    offset = 0
    for tensor in large:
        length = len(tensor.raw_data)
        _point(tensor, path.name, offset, length)
        offset += length + -length % _ALIGNMENT
    return path, new


def _parts(tensors: list[onnx.TensorProto]) -> Iterator[bytes]:
    for tensor in tensors:
        yield tensor.raw_data
        yield bytes(-len(tensor.raw_data) % _ALIGNMENT)


def _write(tensors: list[onnx.TensorProto], file: BinaryIO) -> None:
    for part in _parts(tensors):
        file.write(part)


def _point(tensor: onnx.TensorProto, name: str, offset: int, length: int) -> None:
    """Let a tensor say where its values lie."""
    import onnx

    for key, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
