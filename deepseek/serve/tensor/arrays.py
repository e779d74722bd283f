"""From arrays through a runtime and back, by the shortest way each runtime has. Inputs were checked before.

Not here: which runtime (see `choose`), what fits (see `datatypes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepseek.export.runtimes.eager import EagerRuntime
from deepseek.export.runtimes.onnx_runtime import OnnxRuntime
from deepseek.export.runtimes.openvino_runtime import OpenVinoRuntime
from deepseek.export.runtimes.runtime import Runtime, in_float32, torch_threads
from deepseek.serve.tensor.batch import Arrays

ArrayRun = Callable[[Arrays], dict[str, np.ndarray]]


class Around(NamedTuple):
    """What is known beside a runtime: where it runs, with how many threads, and how names and formats go in and out."""

    device: torch.device
    threads: int | None
    names: Mapping[str, str]
    """An output's public name where the runtime calls it otherwise."""
    halves: frozenset[str]
    """Inputs in bfloat16, which come as their bits."""


def array_run(runtime: Runtime, around: Around) -> ArrayRun:
    """Return a function from arrays to arrays. Outputs are arrays that no later run touches."""
    names, halves = around.names, around.halves
    if isinstance(runtime, OnnxRuntime | OpenVinoRuntime):
        return _renamed(runtime.run_arrays, names)
    if isinstance(runtime, EagerRuntime):
        return _renamed(_eager(runtime, around), names)

    def run(arrays: Arrays) -> dict[str, np.ndarray]:
        return _arrays(runtime.run({name: _tensor(value, name in halves) for name, value in arrays.items()}))

    return _renamed(run, names)


def to_arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays; bfloat16 as its bits."""
    return {
        name: (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).detach().cpu().contiguous().numpy()
        for name, value in values.items()
    }


def _eager(runtime: EagerRuntime, around: Around) -> ArrayRun:
    """Return PyTorch itself. The model is in eval mode for good here, so its modes need no setting around each run."""
    model: Any = runtime.model
    model.eval()
    device, threads, halves = around.device, around.threads, around.halves
    on_cpu = device.type == "cpu"

    def run(arrays: Arrays) -> dict[str, np.ndarray]:
        inputs = {name: _tensor(value, name in halves) for name, value in arrays.items()}
        if not on_cpu:
            inputs = {name: value.to(device) for name, value in inputs.items()}
        with torch.no_grad(), torch_threads(threads):
            return _arrays(runtime.call(model, inputs))

    return run


def _renamed(run: Callable[[Arrays], dict[str, np.ndarray]], names: Mapping[str, str]) -> ArrayRun:
    if not names:
        return run
    return lambda arrays: {names.get(name, name): value for name, value in run(arrays).items()}


def _tensor(value: np.ndarray, is_bfloat16: bool) -> Tensor:
    """Return an array as a tensor on the same memory; a copy where torch would warn (read-only) or can't (strides)."""
    if not value.flags.writeable or not value.flags.c_contiguous:
        value = value.copy()
    tensor = torch.from_numpy(value)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _arrays(outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in in_float32(outputs).items()}
