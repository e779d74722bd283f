"""`ds.static`: a model or function captured as one graph and compiled, and ahead-of-time packages of it.

Capture is all or nothing: where Python gets in the way, an ExportError names the operation and the line instead of a
slow fallback. Results equal eager within a tolerance: `verify` measures it, `save` insists on it. Not here: how
packages are made and loaded (`aot.py`), ONNX (`onnx_export.py`).
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.aot import TOLERANCE, Target, compiler_error, export_aot, load_static
from deepseek.export.capture import capture_error, quiet
from deepseek.export.parity import Check
from deepseek.export.signature import Axes, ExampleInputs, evaluating, output_tensors

__all__ = ["Static", "load_static", "static"]


class Static:
    """A compiled model or function. Call it like the original; the first call of a new shape compiles.

    After two sizes of a dimension the code is made for any (`dynamic=None`), `True` does so at once, `False` never.
    Raises ExportError, naming operation and line, where the original can't be captured whole or a shape can't be taken.
    """

    def __init__(
        self,
        target: Target,
        example_inputs: ExampleInputs | None = None,
        *,
        axes: Axes | None = None,
        dynamic: bool | None = None,
        backend: str = "inductor",
    ) -> None:
        self.target = target
        self._example, self._axes = example_inputs, axes
        self._dynamic, self._backend = dynamic, backend
        self._compiled: Callable[..., Any] | None = None
        if not isinstance(target, nn.Module):
            functools.update_wrapper(self, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            self._compiled = _compile(self.target, self._dynamic, self._backend)
        try:
            with _compile_errors():
                return self._compiled(*args, **kwargs)
        except _RaisedByModelError as error:
            self.target(*args, **kwargs)  # raises the same in its own words
            raise capture_error(error) from error

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def verify(self, *args: Any, **kwargs: Any) -> float:
        """Run the original and the compiled code in eval mode and return the largest absolute difference.

        Raises ExportError if the output is not made of tensors.
        """
        with evaluating(self.target):
            wanted, found = output_tensors(self.target(*args, **kwargs)), output_tensors(self(*args, **kwargs))
        return max(float((wanted[n].double() - found[n].double()).abs().max()) for n in wanted if wanted[n].numel())

    def save(
        self, path: str | Path, *, checks: Sequence[Mapping[str, int]] | None = None, tolerance: float = TOLERANCE
    ) -> tuple[Check, ...]:
        """Compile ahead of time (eval mode), compare with the original over several sizes, write one package.

        `axes`, given to `static`, names the dimensions that may change: by default the batch, and every length that the
        code leaves free. The package needs torch to load, not this model's source, and the processor features of this
        machine. Raises ParityError if it answers differently, ExportError if there is no C++ compiler; then nothing is
        written.
        """
        report = export_aot(self.target, path, self._example, axes=self._axes, checks=checks, tolerance=tolerance)
        return report.checks


class _StaticVerb:
    """`static(...)` as a call or a decorator, and `static.load(path)`."""

    load = staticmethod(load_static)

    @overload
    def __call__(self, target: Target, example_inputs: ExampleInputs | None = None, **options: Any) -> Static: ...

    @overload
    def __call__(self, target: None = None, **options: Any) -> Callable[[Target], Static]: ...

    def __call__(
        self, target: Target | None = None, example_inputs: ExampleInputs | None = None, **options: Any
    ) -> Static | Callable[[Target], Static]:
        """Return `target` as a Static; without a target, a decorator with these options (those of Static)."""
        if target is None:
            return lambda decorated: Static(decorated, example_inputs, **options)
        return Static(target, example_inputs, **options)


static = _StaticVerb()


class _RaisedByModelError(Exception):
    """While the graph was captured, the model's own code raised an error."""


def _compile(target: Target, dynamic: bool | None, backend: str) -> Callable[..., Any]:
    if backend == "inductor":
        with quiet():  # its first import warns of what it uses itself
            importlib.import_module("torch._inductor.compile_fx")
    compiled: Callable[..., Any] = torch.compile(target, fullgraph=True, dynamic=dynamic, backend=backend)
    return compiled


@contextmanager
def _compile_errors() -> Iterator[None]:
    """Turn what torch's compiler says into ExportError; what the model itself raises stays."""
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        yield
    except DeepSeekError:
        raise
    except FailOnRecompileLimitHit as error:
        raise ExportError(
            "too many different shapes or values: each was compiled anew, up to the limit",
            found=str(error).strip().splitlines()[0],
            fix="use static(..., dynamic=True), or pad the inputs to a few sizes",
        ) from error
    except (BackendCompilerFailed, InductorError) as error:
        raise compiler_error(error) from error
    except TorchDynamoException as error:
        if str(error).startswith("Observed exception"):
            raise _RaisedByModelError(str(error)) from error
        raise capture_error(error) from error
