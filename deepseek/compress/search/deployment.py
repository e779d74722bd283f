"""A candidate on the runtimes of this machine: exported, checked, timed. Not here: the runtimes (`deepseek.export`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepseek.errors import DeepSeekError, StorageError
from deepseek.export.chosen import choose_runtime
from deepseek.export.onnx_export import export_onnx
from deepseek.export.runtimes import runtimes_present
from deepseek.export.runtimes.runtime import Precision
from deepseek.nn.int8_swap import int8_specs

_EAGER = "eager"
_RUNS, _LEAST_SECONDS, _MOST_SECONDS = 60, 2.0, 30.0


def deployed(
    folder: Path,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    metric: Callable[[nn.Module], Mapping[str, float]],
    eager_ms: float,
    runtimes: Sequence[str],
    calibration: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Export the bundle in `folder`, whose model is `model`, and return the fastest `runtime` that keeps its answers.

    With it come `latency_ms` (median of one sample) and a row for each runtime that was tried; the choice also lies in
    the bundle's `exports/runtime.json`. Of `runtimes` those that are installed are tried; `eager_ms` is what one sample
    takes without them, `calibration` batches for the further roundings of a static int8 graph. A model that can't be
    exported has eager PyTorch alone, and `not_exported` says why. Returns nothing where there is only eager to try.
    Raises StorageError where the disk refuses.
    """
    present = [name for name in runtimes_present() if name in runtimes]
    if not set(present) - {_EAGER}:
        return {}
    obstacle = _exported(folder, model, inputs, calibration)
    precision: Precision = "int8" if int8_specs(model) else "fp32"
    choice = choose_runtime(
        folder,
        inputs=inputs,
        metric=metric,
        seconds=min(_MOST_SECONDS, max(_LEAST_SECONDS, _RUNS * eager_ms / 1e3)),
        runtimes=[_EAGER] if obstacle else present,
        precisions=[precision],
    )
    rows = [
        {"runtime": row.runtime, "precision": row.precision, "status": row.status, "reason": row.reason}
        | {"latency_ms": row.latency.p50_ms if row.latency is not None else None}
        for row in choice.rows
    ]
    latency = choice.winner.latency
    found: dict[str, Any] = {"runtime": choice.winner.runtime, "runtimes": rows}
    if latency is not None:
        found["latency_ms"] = latency.p50_ms
    return found | ({"not_exported": obstacle} if obstacle else {})


def _exported(
    folder: Path, model: nn.Module, inputs: Mapping[str, Tensor], calibration: Iterable[Any] | None
) -> str | None:
    """Write the bundle's ONNX file; return why there is none."""
    if any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")):
        return "the extra [export] is not installed"
    specs = int8_specs(model)
    name = "model.int8.onnx" if specs else "model.onnx"
    data = calibration if any(spec.get("mode") == "static" for spec in specs.values()) else None
    try:
        export_onnx(model, folder / "exports" / name, dict(inputs), calibration_data=data)
    except StorageError:
        raise
    except DeepSeekError as error:
        return error.problem
    return None
