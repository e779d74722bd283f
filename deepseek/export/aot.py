"""Ahead-of-time packages: a model's graph compiled to native code, loaded without the Python source of the model.

Made by AOTInductor (https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html). A package needs torch, and
the processor features of the machine that made it; it runs native code when loaded: load only what you trust. Not here:
the verb `ds.static` (`static.py`).
"""

from __future__ import annotations

import inspect
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deepseek.errors import DeepSeekError, ExportError, ModelError
from deepseek.export.axes import captured
from deepseek.export.capture import axis_limits, quiet
from deepseek.export.parity import Check, compare, default_checks
from deepseek.export.runtimes import EagerRuntime
from deepseek.export.signature import Axes, ExampleInputs, Signature, named_inputs, output_tensors
from deepseek.files import atomic_path

TOLERANCE = 1e-3
_METADATA = "deepseek_signature"

Target = nn.Module | Callable[..., Any]


class AotReport(NamedTuple):
    """What was written and how it compared."""

    path: Path
    bytes: int
    tolerance: float
    checks: tuple[Check, ...]
    signature: Signature
    """Inputs and outputs; a text in a shape names a size that may change, `limits` says how far."""


def export_aot(
    target: Target,
    path: str | Path,
    example_inputs: ExampleInputs | None = None,
    *,
    axes: Axes | None = None,
    checks: Sequence[Mapping[str, int]] | None = None,
    tolerance: float = TOLERANCE,
) -> AotReport:
    """Compile a model or function (eval mode), compare it with the original over several sizes, write one package.

    `axes` and `checks` as for `export_onnx`. Raises ParityError if it answers differently, ExportError if it can't be
    captured or there is no C++ compiler, StorageError if the disk refuses: then nothing is written.
    """
    _require_cpu(target)
    _require_compiler()
    inputs = named_inputs(target, example_inputs)
    program, free = captured(_Flat(target), inputs, axes)
    eager = EagerRuntime(target, inputs, free)
    longest = getattr(getattr(target, "config", None), "max_length", None)
    checks = default_checks(inputs, free, longest) if checks is None else checks
    limits = ({"time": longest} if longest else {}) | axis_limits(program, free)
    signature = eager.signature._replace(limits=limits)
    package = _compiled(program, signature)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(package)
        results = compare(eager, load_static(temporary), inputs, free, checks, tolerance)
    return AotReport(Path(path), len(package), tolerance, results, signature)


class _Flat(nn.Module):
    """The target with its output as a plain list of tensors: a package can't hold types of the user's own."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

        def forward(*args: Tensor, **kwargs: Tensor) -> list[Tensor]:
            return list(output_tensors(target(*args, **kwargs)).values())

        original = target.forward if isinstance(target, nn.Module) else target
        forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]  # what capturing binds to
        self.forward = forward
        for name in ("example_inputs", "input_axes"):
            if hasattr(target, name):
                setattr(self, name, getattr(target, name))


def _compiled(program: ExportedProgram, signature: Signature) -> bytes:
    package = io.BytesIO()
    configs = {"aot_inductor.metadata": {_METADATA: signature.to_json()}}
    with quiet():
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=configs)
        except DeepSeekError:
            raise
        except Exception as error:
            raise compiler_error(error) from error
    return package.getvalue()


def compiler_error(error: BaseException) -> ExportError:
    """Return what a failed compilation of a whole graph means."""
    return ExportError(
        "the captured graph can't be compiled",
        found=" ".join(str(error).split())[:300],
        fix="install a C++ compiler (g++), or use static(..., backend='aot_eager') to run without one",
    )


class StaticPackage:
    """An ahead-of-time package, ready to run: call it with the original's inputs, by position or by name.

    Returns a tensor, or the outputs by name where there are several. Shapes and dtypes are checked first (ModelError).
    Values are not: an id beyond its table ends the process.
    """

    def __init__(self, loaded: Any, signature: Signature) -> None:
        self._loaded = loaded
        self.signature = signature

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        names = [spec.name for spec in self.signature.inputs]
        if len(args) > len(names):
            raise ModelError("too many inputs", found=len(args), wanted=names)
        found = self.run(dict(zip(names, args, strict=False)) | kwargs)
        return next(iter(found.values())) if len(found) == 1 else found

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, inputs and outputs by name (the Runtime protocol). Raises ModelError if the inputs do not fit."""
        self.signature.check(inputs)
        with torch.no_grad():
            found = self._loaded.loader.boxed_run([inputs[spec.name] for spec in self.signature.inputs])
        return {spec.name: tensor for spec, tensor in zip(self.signature.outputs, found, strict=True)}


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
