"""`open_runtime`: any runtime by its name, on a model, a bundle or a file; and which of them this machine has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from deepseek import bundle as bundles
from deepseek.errors import ConfigError, ExportError, did_you_mean
from deepseek.export.runtimes.eager import EagerRuntime, usual_axes
from deepseek.export.runtimes.inductor import InductorRuntime, has_compiler
from deepseek.export.runtimes.onnx_runtime import OnnxRuntime, providers_present
from deepseek.export.runtimes.openvino_runtime import OpenVinoRuntime
from deepseek.export.runtimes.package import PackageRuntime
from deepseek.export.runtimes.runtime import Precision, Runtime, Settings
from deepseek.export.signature import named_inputs
from deepseek.export.static import load_static

FILES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "static": {"float": ("model.pt2",), "int8": ("model.int8.pt2",)},
    "onnxruntime": {"float": ("model.onnx",), "int8": ("model.int8.onnx",)},
    "openvino": {
        "float": ("openvino/model.xml", "model.onnx"),
        "int8": ("openvino/model.int8.xml", "openvino-int8/model.xml", "model.int8.onnx"),
    },
}
"""Where a bundle's `exports/` keeps the file of each runtime: the first that is there counts."""

NAMES = ("eager", "inductor", "static", "onnxruntime", "openvino")


def runtimes_present() -> list[str]:
    """Return the names of the runtimes that are installed here, as `open_runtime` takes them.

    `onnxruntime` is its CPU form; its other execution providers come as `onnxruntime:cuda` and the like.
    """
    names = ["eager"] + (["inductor", "static"] if has_compiler() else [])
    names += ["onnxruntime" if one == "cpu" else f"onnxruntime:{one}" for one in providers_present()]
    return names + (["openvino"] if find_spec("openvino") is not None else [])


def open_runtime(
    name: str,
    source: str | Path | nn.Module,
    *,
    threads: int | None = None,
    precision: Precision | None = None,
    example: Mapping[str, Tensor] | None = None,
    settings: Settings | None = None,
) -> Runtime:
    """Return a runtime by name: `eager`, `inductor`, `static`, `onnxruntime`, `openvino`, or one of another device
    (`onnxruntime:tensorrt`, `openvino:gpu`).

    `source` is a model (eager, inductor), a bundle (whose `exports/` holds the files), or one file. Unset, `precision`
    is that of model or file. Raises ConfigError for an unknown name, ExportError where a file is missing or the runtime
    can't do the precision, MissingExtraError where it is not installed, BundleError for a wrong bundle.
    """
    kind, _, device = name.partition(":")
    if kind not in NAMES or (device and kind not in ("onnxruntime", "openvino")):
        raise ConfigError("unknown runtime", found=repr(name), fix=did_you_mean(name, NAMES))
    settings = settings or Settings()
    settings = settings._replace(threads=threads if threads is not None else settings.threads)
    if kind in ("eager", "inductor"):
        return _torch_runtime(kind, source, precision, example, settings)
    if isinstance(source, nn.Module):
        raise ConfigError(
            f"the runtime '{name}' reads a file", found=type(source).__name__, fix="export the model first"
        )
    path = _file_for(kind, Path(source), precision)
    if kind == "openvino":
        return OpenVinoRuntime(path, precision=precision, device=device or "cpu", settings=settings)
    if precision == "bf16":
        raise ExportError(
            f"'{name}' computes in what its file says: it can't turn float32 into bf16",
            fix="use the runtime openvino, inductor or eager for bf16",
        )
    if kind == "static":
        return PackageRuntime(load_static(path), settings.threads)
    return OnnxRuntime(path, provider=device or "cpu", settings=settings)


def file_of(bundle: Path, runtime: str, precision: Precision | None) -> Path | None:
    """Return the file in a bundle's `exports/` that a runtime would run in this precision; None where there is none."""
    places = FILES[runtime.partition(":")[0]]["int8" if precision == "int8" else "float"]
    return next((path for place in places if (path := bundle / "exports" / place).is_file()), None)


def _file_for(kind: str, source: Path, precision: Precision | None) -> Path:
    """Return the file meant: `source` itself, or the one in a bundle's exports. Raises ExportError without one."""
    if not source.is_dir():
        return source
    path = file_of(source, kind, precision)
    if path is None:
        wanted = FILES[kind]["int8" if precision == "int8" else "float"]
        raise ExportError(
            f"{source} has no file for the runtime '{kind}'" + (f" in {precision}" if precision else ""),
            wanted=" or ".join(f"exports/{place}" for place in wanted),
            fix="export the bundle first (deepseek export BUNDLE)",
        )
    return path


def _torch_runtime(
    kind: str,
    source: str | Path | nn.Module,
    precision: Precision | None,
    example: Mapping[str, Tensor] | None,
    settings: Settings,
) -> Runtime:
    model = source if isinstance(source, nn.Module) else bundles.load(source, device="cpu").model
    inputs = named_inputs(model, example)
    axes = usual_axes(model, inputs)
    make = EagerRuntime if kind == "eager" else InductorRuntime
    return cast(Runtime, make(model, inputs, axes, precision, settings.threads))
