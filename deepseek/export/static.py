"""`ds.static`: a model or function captured as one graph and compiled, and ahead-of-time packages of it.

Capture is all or nothing: where Python gets in the way, an ExportError names the operation and the line instead of a
slow fallback. Results equal eager within a tolerance: `verify` measures it, `save` insists on it. A package runs native
code when loaded: load only packages you trust. Not here: ONNX (`onnx_export.py`).
"""

from __future__ import annotations

import functools
import importlib
import io
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from deepseek.errors import DeepSeekError, ExportError, ModelError
from deepseek.export.capture import axis_limits, capture, capture_error, quiet
from deepseek.export.parity import Check, compare, default_checks
from deepseek.export.runtimes import EagerRuntime
from deepseek.export.signature import (
    Axes,
    ExampleInputs,
    Signature,
    check_axes,
    default_axes,
    evaluating,
    named_inputs,
    output_tensors,
)
from deepseek.files import atomic_path

_TOLERANCE = 1e-3
_METADATA = "deepseek_signature"

Target = nn.Module | Callable[..., Any]


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
        self, path: str | Path, *, checks: Sequence[Mapping[str, int]] | None = None, tolerance: float = _TOLERANCE
    ) -> tuple[Check, ...]:
        """Compile ahead of time (eval mode), compare with the original over several sizes, write one package.

        `axes`, given to `static`, names the dimensions that may change: by default the batch, and the length of integer
        ids. The package needs torch to load, not this model's source, and the processor features of this machine.
        Raises ParityError if it answers differently, ExportError if there is no C++ compiler; then nothing is written.
        """
        _require_cpu(self.target)
        _require_compiler()
        inputs = named_inputs(self.target, self._example)
        axes = check_axes(inputs, default_axes(inputs) if self._axes is None else self._axes)
        program = capture(self.target, inputs, axes)
        eager = EagerRuntime(self.target, inputs, axes)
        longest = getattr(getattr(self.target, "config", None), "max_length", None)
        checks = default_checks(inputs, axes, longest) if checks is None else checks
        limits = ({"time": longest} if longest else {}) | axis_limits(program, axes)
        signature = eager.signature._replace(limits=limits)
        package = io.BytesIO()
        with quiet(), _compile_errors():
            configs = {"aot_inductor.metadata": {_METADATA: signature.to_json()}}
            torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=configs)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(package.getvalue())
            return compare(eager, load_static(temporary), inputs, axes, checks, tolerance)


class StaticPackage:
    """An ahead-of-time package, ready to run: call it with the original's inputs, by position or by name.

    Shapes and dtypes are checked first (ModelError). Values are not: an id beyond its table ends the process.
    """

    def __init__(self, loaded: Callable[..., Any], signature: Signature) -> None:
        self._loaded = loaded
        self.signature = signature

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        names = [spec.name for spec in self.signature.inputs]
        if len(args) > len(names):
            raise ModelError("too many inputs", found=len(args), wanted=names)
        named = dict(zip(names, args, strict=False)) | kwargs
        self.signature.check(named)
        with torch.no_grad():
            return self._loaded(**{name: named[name] for name in names})

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, inputs and outputs by name (the Runtime protocol). Raises ModelError if the inputs do not fit."""
        return output_tensors(self(**inputs), self.signature.outputs[0].name)


def load_static(path: str | Path) -> StaticPackage:
    """Load a package that `Static.save` wrote; the model's Python source is not needed.

    It holds native code, which runs here: load only what you trust. Raises ExportError if it can't be loaded.
    """
    if not Path(path).is_file():
        raise ExportError(f"there is no package at {path}", fix="write one with ds.static(model).save(path)")
    with quiet():
        try:
            package = io.BytesIO(Path(path).read_bytes())
            loaded = torch._inductor.aoti_load_package(package)
            signature = Signature.from_json(loaded.get_metadata()[_METADATA])
        except Exception as error:
            raise ExportError(
                f"{path} can't be loaded as a static package",
                found=" ".join(f"{type(error).__name__}: {error}".split())[:300],
                fix="save it again with this version of torch, on a machine of this kind",
            ) from error
    return StaticPackage(loaded, signature)


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


def _require_cpu(target: Target) -> None:
    tensors = target.state_dict().values() if isinstance(target, nn.Module) else ()
    devices = {tensor.device.type for tensor in tensors} - {"cpu"}
    if devices:
        raise ExportError(
            "packages are made for the CPU", found=sorted(devices)[0], fix="call .cpu() on the model first"
        )


def _require_compiler() -> None:
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ExportError("no C++ compiler to make a package with", wanted="g++ or clang++", fix="apt install g++")


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
        raise ExportError(
            "the captured graph can't be compiled",
            found=" ".join(str(error).split())[:300],
            fix="install a C++ compiler (g++), or use static(..., backend='aot_eager') to run without one",
        ) from error
    except TorchDynamoException as error:
        if str(error).startswith("Observed exception"):
            raise _RaisedByModelError(str(error)) from error
        raise capture_error(error) from error
