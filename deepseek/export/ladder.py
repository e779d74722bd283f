"""The parity ladder: every form of a bundle held against the bundle itself, at several shapes, with time and size.

Fails closed: one rung that answers differently fails the ladder, names the first layer or node that differs, and
nothing is written. A rung that can't be stood on here says why. Not here: how a form is made (`rungs.py`), what is
still the same model (`quality.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from deepseek import bundle as bundles
from deepseek.bundle import Bundle
from deepseek.errors import BundleError, ConfigError, DeepSeekError, MissingExtraError, did_you_mean
from deepseek.evaluate.latency import Latency, measure_in_turn
from deepseek.export.axes import captured
from deepseek.export.choice import finite
from deepseek.export.chosen import Metric, check_writable
from deepseek.export.first_difference import first_difference
from deepseek.export.first_module import first_differing_layer
from deepseek.export.parity import default_checks
from deepseek.export.quality import (
    FP32_RELATIVE,
    LEAST_SNR_DB,
    Deviation,
    Figure,
    deviation,
    deviation_over,
    main_figure,
    objection,
)
from deepseek.export.rungs import EAGER_RUNGS, RUNGS, Form, Ground, NotHereError, why_not
from deepseek.export.runtimes.as_model import as_model
from deepseek.export.runtimes.eager import EagerRuntime, working_axes
from deepseek.export.runtimes.openvino_runtime import OpenVinoRuntime
from deepseek.export.runtimes.runtime import Precision, Runtime
from deepseek.export.signature import Axes, axis_sizes, evaluating, named_inputs, resized
from deepseek.files import write_json

_DRAWN, _ROWS = 8, 16  # made-up batches to calibrate with, and their size

Status = Literal["passed", "failed", "not run"]


class Rung(NamedTuple):
    """One form beside the bundle in eager PyTorch. What was not measured is None."""

    name: str
    status: Status
    reason: str = ""
    """Why it failed or did not run; or what could not be measured."""
    precision: Precision | None = None
    deviation: Deviation | None = None
    """Over all shapes: the worst errors, one signal-to-noise ratio."""
    figure: Figure | None = None
    latency: Latency | None = None
    """Of a batch of one."""
    speedup: float | None = None
    """Over eager, from runs in turn."""
    bytes: int | None = None
    first_difference: str | None = None
    """Where a failed form begins to differ."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them; an infinite error as text."""
        plain = self._asdict()
        for name in ("deviation", "figure", "latency"):
            value = plain[name]
            plain[name] = None if value is None else finite(value._asdict())
        return plain


class Ladder(NamedTuple):
    """What was found."""

    bundle: str
    """Its folder's name."""
    shapes: tuple[dict[str, int], ...]
    """The sizes of the named axes at which each rung was compared."""
    rungs: tuple[Rung, ...]

    @property
    def ok(self) -> bool:
        """Whether no rung failed."""
        return not any(rung.status == "failed" for rung in self.rungs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        limits = {"fp32_relative_error": FP32_RELATIVE, "least_snr_db": dict(LEAST_SNR_DB)}
        rungs = [rung.to_dict() for rung in self.rungs]
        return {"bundle": self.bundle, "ok": self.ok, "limits": limits, "shapes": list(self.shapes), "rungs": rungs}


def climb(
    bundle_path: str | Path,
    *,
    rungs: Sequence[str] | None = None,
    metric: Metric | None = None,
    calibration: Iterable[Any] = (),
    seconds: float = 0.5,
    record: bool = True,
    say: Callable[[str], object] | None = None,
) -> Ladder:
    """Hold every form of a bundle against the bundle itself and return the table.

    `rungs` are names of `deepseek.export.rungs.RUNGS`, by default all. `metric` measures a model on its task.
    `calibration` are batches for static int8 (without them, made-up inputs). Each form is timed for `seconds`.
    With `record` a ladder without a failure goes to `BUNDLE/exports/ladder.json`. Raises BundleError for a wrong
    bundle, ConfigError for an unknown rung, StorageError before the work where the result could not be written.
    """
    names = list(RUNGS) if rungs is None else list(rungs)
    for name in names:
        if name not in RUNGS:
            raise ConfigError("unknown rung", found=repr(name), fix=did_you_mean(name, RUNGS))
    path = Path(bundle_path)
    bundle = bundles.load(path, device="cpu")
    if record:
        check_writable(path)
    with tempfile.TemporaryDirectory(prefix="deepseek-ladder-") as folder:
        example = named_inputs(bundle.model, None)
        axes: Axes = _axes(bundle.model, example, graph=not EAGER_RUNGS.issuperset(names))
        data = list(calibration) or _drawn(bundle.model, example, axes)
        ground = Ground(path, bundle.model, example, axes, Path(folder), data, {})
        climber = _Climber(bundle, ground, metric, seconds)
        found = []
        for name in names:
            found.append(climber.stand_on(name))
            if say is not None:
                say(f"{name}: {found[-1].status}" + (f" ({found[-1].reason})" if found[-1].reason else ""))
    ladder = Ladder(path.name, tuple(dict(shape) for shape in climber.shapes), tuple(found))
    if record and ladder.ok and path.is_dir():
        write_json(path / "exports" / "ladder.json", ladder.to_dict())
    return ladder


class _Climber:
    """The reference answers, and the comparison of one form after the other."""

    def __init__(self, bundle: Bundle, ground: Ground, metric: Metric | None, seconds: float) -> None:
        self._bundle, self._ground, self._metric, self._seconds = bundle, ground, metric, seconds
        self._model, example, axes = ground.model, ground.example, ground.axes
        self._eager: Runtime = RUNGS["eager"](ground).runtime
        self.shapes: list[dict[str, int]] = []
        self._inputs: list[Mapping[str, Tensor]] = []
        self._wanted: list[dict[str, Tensor]] = []
        for seed, sizes in enumerate(_checks(self._model, example, axes)):
            inputs = resized(example, axes, sizes, seed)
            with contextlib.suppress(DeepSeekError, RuntimeError):  # not every model takes a length of one
                self._wanted.append(self._eager.run(inputs))
                self._inputs.append(inputs)
                self.shapes.append(dict(sizes))
        one = {axis: 1 if axis == "batch" else size for axis, size in axis_sizes(example, axes).items()}
        self._timed = resized(example, axes, one)
        self._before, _ = self._figure(self._model)

    def stand_on(self, name: str) -> Rung:
        """Make the form, compare it at every shape, time it."""
        try:
            form = RUNGS[name](self._ground)
        except NotHereError as reason:
            return Rung(name, "not run", str(reason))
        except MissingExtraError as error:
            return Rung(name, "not run", why_not(error))
        except DeepSeekError as error:
            return Rung(name, "failed", why_not(error), first_difference=_named_module(error))
        try:
            return self._compared(name, form)
        except DeepSeekError as error:
            return Rung(name, "failed", why_not(error), form.precision, bytes=form.bytes)

    def _compared(self, name: str, form: Form) -> Rung:
        if name == "eager":
            try:
                self._bundle.verify()
            except BundleError as error:
                return Rung(name, "failed", why_not(error), form.precision, bytes=form.bytes)
        answers = [form.runtime.run(inputs) for inputs in self._inputs]
        worst = deviation_over(self._wanted, answers)
        figure, note = self._figure(as_model(self._model, form.runtime)) if name != "eager" else (self._before, "")
        old, new = measure_in_turn([self._eager, form.runtime], self._timed, seconds=self._seconds)
        rung = Rung(name, "passed", note, form.precision, worst, figure, new, old.p50_ms / new.p50_ms, form.bytes)
        against = objection(form.precision, worst, self._before, figure)
        if against is None:
            saved = objection(form.precision, worst)
            return rung if saved is None else rung._replace(reason=f"{saved}; the task's figure keeps it")
        errors = [deviation(w, a).relative_error for w, a in zip(self._wanted, answers, strict=True)]
        index = errors.index(max(errors))
        where = self._where(form, self._inputs[index]) or f"output '{worst.output}'"
        place = f"{against}; worst at {self.shapes[index]}"
        return rung._replace(status="failed", reason=place, first_difference=where)

    def _where(self, form: Form, inputs: Mapping[str, Tensor]) -> str | None:
        """Return the first layer or node that differs; None where the form can't be looked into."""
        least = LEAST_SNR_DB.get(form.precision, 80.0)
        if form.model is not None and form.model is not self._model:
            layer = first_differing_layer(
                self._model,
                lambda: self._eager.run(inputs),
                form.model,
                lambda: form.runtime.run(inputs),
                least,
            )
            return None if layer is None else f"layer '{layer.name}' ({layer.kind}), {layer.snr_db:.1f} dB"
        if form.onnx is None or form.precision != self._ground.own:
            return None  # an int8 file has other nodes than the original's graph
        allowed = FP32_RELATIVE if form.precision == "fp32" else 10 ** (-least / 20)
        try:
            found = first_difference(
                self._model,
                form.onnx,
                inputs,
                axes=self._ground.axes,
                tolerance=allowed,
                openvino=isinstance(form.runtime, OpenVinoRuntime),
            )
        except DeepSeekError:
            return None
        return None if found is None else str(found)

    def _figure(self, model: nn.Module) -> tuple[Figure | None, str]:
        """Return the task's figure, or why there is none."""
        if self._metric is None:
            return None, ""
        try:
            with evaluating(model):
                return main_figure(self._metric(model)), ""
        except DeepSeekError as error:
            return None, f"the task's figure was not measured: {why_not(error)}"


def _axes(model: nn.Module, example: Mapping[str, Tensor], *, graph: bool) -> Axes:
    """Return the axes that the model's graph leaves free; without one, those with which the model runs."""
    if graph:
        with contextlib.suppress(DeepSeekError, RuntimeError):  # the rungs that need the graph will say so
            _, axes = captured(model, example, None)
            if EagerRuntime(model, example, axes).signature:
                return axes
    return working_axes(model, example)


def _checks(model: nn.Module, example: Mapping[str, Tensor], axes: Axes) -> list[dict[str, int]]:
    longest = getattr(getattr(model, "config", None), "max_length", None)
    return default_checks(example, axes, longest)


def _drawn(model: nn.Module, example: Mapping[str, Tensor], axes: Axes) -> list[dict[str, Tensor]]:
    """Return batches to calibrate with where there are no data: of the sizes to be compared, with other values."""
    sizes = [
        {axis: _ROWS if axis == "batch" else n for axis, n in one.items()} for one in _checks(model, example, axes)
    ]
    return [resized(example, axes, sizes[index % len(sizes)], 1000 + index) for index in range(_DRAWN)]


def _named_module(error: DeepSeekError) -> str | None:
    """Return what an export says of where it failed."""
    found = "" if error.found is None else str(error.found)
    return found if "node" in found or "module" in found else None
