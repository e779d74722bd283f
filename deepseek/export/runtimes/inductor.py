"""PyTorch compiled in memory: `torch.compile` of the whole graph, weights frozen into the kernels' own layouts.

Not here: packages that a later process loads (`deepseek.export.static`).
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.capture import capture_error, quiet
from deepseek.export.runtimes.eager import EagerRuntime
from deepseek.export.runtimes.runtime import Precision, torch_threads
from deepseek.export.signature import Axes, Signature, evaluating


class InductorRuntime:
    """The model compiled; the first run of a new shape compiles (`dynamic=False`), or a second one does for all sizes.

    Freezing keeps packed weights beside the model's own. Raises ExportError where the model can't be compiled whole,
    or where there is no C++ compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Mapping[str, Tensor],
        axes: Axes,
        precision: Precision | None = None,
        threads: int | None = None,
        dynamic: bool | None = None,
    ) -> None:
        if not has_compiler():
            raise ExportError("no C++ compiler to compile a model with", wanted="g++ or clang++", fix="apt install g++")
        self._eager = EagerRuntime(model, example, axes, precision)
        self._threads = threads
        with quiet():  # its first import warns of what it uses itself
            importlib.import_module("torch._inductor.compile_fx")
        self._compiled: Callable[..., Any] = torch.compile(
            self._eager.model, fullgraph=True, dynamic=dynamic, options={"freezing": True}
        )
        self._known: set[tuple[Any, ...]] = set()

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, as of the eager form."""
        return self._eager.signature

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit, ExportError if they can't be compiled for."""
        self._eager.check(inputs)
        shapes = tuple(value.shape for value in inputs.values())
        with evaluating(self._eager.model), torch_threads(self._threads):
            if shapes in self._known:
                return self._eager.call(self._compiled, inputs)
            outputs = self._first(inputs)
        self._known.add(shapes)
        return outputs

    def _first(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compile for a shape; what the compiler says becomes one typed error."""
        try:
            with quiet():
                return self._eager.call(self._compiled, inputs)
        except DeepSeekError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("torch._dynamo"):
                raise capture_error(error) from error
            raise ExportError(
                "the model can't be compiled",
                found=" ".join(f"{type(error).__name__}: {error}".split())[:300],
                fix="use the runtime 'eager', or report the operation to torch",
            ) from error


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which compiled forms need."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
