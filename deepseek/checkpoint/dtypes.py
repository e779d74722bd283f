"""Torch's dtypes by the names of the safetensors format, and tensors seen as bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepseek.checkpoint.layout import TensorSpec
from deepseek.errors import CheckpointError

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, spelling) for name, spelling in _NAMES.items() if hasattr(torch, spelling)
}
"""Torch's dtype of each name that this version of torch knows."""

_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """Return how the format describes the tensor. Raises CheckpointError for one that it can't hold."""
    dtype = _BY_DTYPE.get(tensor.dtype)
    if dtype is None or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise CheckpointError(
            f"a checkpoint can't hold the tensor '{name}'",
            found=f"{tensor.dtype}, {tensor.layout}, on {tensor.device}",
            wanted=f"a dense tensor with values, of a dtype among {', '.join(_NAMES.values())}",
            fix="turn it into such a tensor in state_dict()",
        )
    return TensorSpec(name, dtype, tuple(tensor.shape))


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements: of its own memory where it is on the CPU, in order."""
    plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    array: Any = plain.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def from_bytes(memory: memoryview, spec: TensorSpec) -> Tensor:
    """Return a tensor over `memory`, without a copy."""
    if not memory:
        return torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
    return torch.frombuffer(memory, dtype=DTYPES[spec.dtype]).view(spec.shape)
