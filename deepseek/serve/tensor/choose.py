"""Which runtime serves a bundle: the one measured fastest on this machine, without measuring for long at start.

The bundle's own choice (`exports/runtime.json`) where it was made on this machine; else a short measurement of the
exported files that are there; else PyTorch itself. Not here: making files and thorough measuring (`deepseek export`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from deepseek.bundle import Bundle
from deepseek.errors import DeepSeekError, ExportError
from deepseek.export.chosen import choose_runtime, load_choice
from deepseek.export.runtimes.opening import FILES, file_of, open_runtime, runtimes_present
from deepseek.export.runtimes.runtime import Precision, Runtime, Settings
from deepseek.export.signature import named_inputs
from deepseek.nn.int8_swap import int8_specs

_LOG = logging.getLogger("deepseek.serve")


class Plan(NamedTuple):
    """What to open: a runtime by name, its precision, the exported file (None: the bundle's weights), its settings."""

    runtime: str
    precision: Precision
    file: str | None
    settings: Settings
    reason: str
    """Why this one, in words."""

    def open(self, bundle: Bundle, settings: Settings | None = None) -> Runtime:
        """Return the runtime. Raises DeepSeekError where it can't be opened."""
        settings = self.settings if settings is None else settings
        if self.file is None:
            example = named_inputs(bundle.model, None)
            precision = None if self.precision == "int8" else self.precision
            return open_runtime(self.runtime, bundle.model, precision=precision, example=example, settings=settings)
        return open_runtime(self.runtime, bundle.path / self.file, precision=self.precision, settings=settings)


def eager_plan(bundle: Bundle, reason: str) -> Plan:
    """Return PyTorch itself in the format of the bundle's weights."""
    return Plan("eager", "int8" if int8_specs(bundle.model) else "fp32", None, Settings(), reason)


def plan_for(bundle: Bundle, device: torch.device, seconds: float) -> Plan:
    """Return what to serve a bundle with; `seconds` bound the measuring where there is no choice for this machine."""
    if device.type != "cpu":
        return eager_plan(bundle, f"the model is on {device}")
    try:
        winner = load_choice(bundle.path, remeasure=False).winner
        return Plan(winner.runtime, winner.precision, winner.file, winner.settings, "the bundle's own choice")
    except (ExportError, OSError) as error:
        why = error.problem if isinstance(error, ExportError) else str(error)
    names = [name for name in runtimes_present() if name in FILES and _has_file(bundle.path, name)]
    if not names or seconds <= 0:
        return eager_plan(bundle, f"{why}; nothing exported to measure" if not names else why)
    _LOG.info("%s: %s; measuring %s for up to %g s", bundle.path.name, why, ", ".join(names), seconds)
    try:
        winner = choose_runtime(
            bundle.path, seconds=seconds, runtimes=["eager", *names], precisions=("fp32", "int8"), record=False
        ).winner
    except (DeepSeekError, RuntimeError) as error:
        _LOG.warning("%s: measuring failed, so PyTorch itself serves it: %s", bundle.path.name, error)
        return eager_plan(bundle, "measuring failed")
    return Plan(winner.runtime, winner.precision, winner.file, winner.settings, f"measured now: {why}")


def _has_file(bundle: Path, runtime: str) -> bool:
    return bundle.is_dir() and any(file_of(bundle, runtime, precision) is not None for precision in ("fp32", "int8"))
