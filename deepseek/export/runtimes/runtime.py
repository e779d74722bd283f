"""What every runtime looks like, and how one is set. Not here: the runtimes, and their choice (`chosen.py`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from deepseek.export.signature import Signature

Precision = Literal["fp32", "bf16", "int8"]
"""`fp32` and `bf16`: what a floating-point model computes in. `int8`: a model or file that holds integers."""


class Runtime(Protocol):
    """Runs one model. Tensors go in and come out by name, on the CPU."""

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of inputs and outputs."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        ...


class Settings(NamedTuple):
    """How a runtime works; None leaves it to the runtime."""

    threads: int | None = None
    """Threads of one run."""
    spinning: bool | None = None
    """Whether idle threads wait by spinning: less latency, a busy core (ONNX Runtime)."""
    sizes: Mapping[str, int] = MappingProxyType({})
    """Sizes that are fixed, by their names in the signature, so that kernels are made for them (ONNX Runtime,
    OpenVINO)."""
    rest: Literal["fp32", "bf16"] = "fp32"
    """What the floating-point parts of an int8 file compute in (OpenVINO)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return {"threads": self.threads, "spinning": self.spinning, "sizes": dict(self.sizes), "rest": self.rest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` made. Raises TypeError or ValueError for anything else."""
        plain = cls(**values)
        return plain._replace(sizes={str(axis): int(size) for axis, size in dict(plain.sizes).items()})


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch work with `count` threads inside; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_float32(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs with 16-bit floats as float32, so that forms of one model compare."""
    half = (torch.bfloat16, torch.float16)
    return {name: value.float() if value.dtype in half else value for name, value in outputs.items()}
