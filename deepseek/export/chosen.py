"""Which runtime runs a bundle fastest on this machine and still answers like it: tried, not guessed.

Every runtime that is present, in float32, bf16 and int8, against the best so far in turn (A B A B); at most two copies
of the model are open at a time. The choice goes to `BUNDLE/exports/runtime.json` with the machine's fingerprint.
Not here: making the files (`onnx_export.py`), checking them rung by rung (`ladder.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepseek import bundle as bundles
from deepseek.errors import ConfigError, DeepSeekError, ExportError, StorageError
from deepseek.evaluate.latency import measure, measure_in_turn
from deepseek.export.choice import Choice, Row, with_front
from deepseek.export.fingerprint import differences, fingerprint
from deepseek.export.quality import Figure, deviation_over, main_figure, objection
from deepseek.export.runtimes.as_model import as_model
from deepseek.export.runtimes.eager import working_axes
from deepseek.export.runtimes.opening import file_of, open_runtime, runtimes_present
from deepseek.export.runtimes.runtime import Precision, Runtime, Settings
from deepseek.export.signature import evaluating, named_inputs, resized
from deepseek.export.tune import tune
from deepseek.files import write_json
from deepseek.nn.int8_swap import int8_specs
from deepseek.quantization.report import tensor_bytes

Metric = Callable[[nn.Module], Mapping[str, float]]
"""Measures a model on its task: the figures by name, as `deepseek.tasks.task.evaluate` gives them."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
_FASTEST = 2  # as many are tuned
_PROBES = 4  # inputs of one size, with other values, on which the answers are compared


def choose_runtime(
    bundle_path: str | Path,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    metric: Metric | None = None,
    seconds: float = 60.0,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[Precision] = PRECISIONS,
    record: bool = True,
    say: Callable[[str], object] | None = None,
) -> Choice:
    """Try the runtimes on this machine and return the fastest that keeps the bundle's accuracy, with the whole table.

    `inputs` are timed (by default one of the model's examples); the exported files are those in the bundle's
    `exports/`. An int8 form slower than the fastest float32 one is refused. `seconds` are for running alone: half for
    all of them in turn, half for the settings of the fastest two; loading and the metric come on top. Once
    they are over, `inductor` is no longer begun, which has to compile. Raises BundleError for a wrong bundle
    and, with `record`, StorageError before the work where the result can't be written.
    """
    if seconds <= 0:
        raise ConfigError("no time to measure in", found=f"seconds={seconds}", wanted="more than 0")
    path = Path(bundle_path)
    bundle = bundles.load(path, device="cpu")
    if record:
        check_writable(path)
    sample = getattr(bundle.model, "example_inputs", None)
    given = inputs if inputs is not None else sample(1) if sample is not None else None
    contest = _Contest(path, bundle.model, named_inputs(bundle.model, given), metric, seconds, say)
    contest.run(runtimes if runtimes is not None else runtimes_present(), precisions)
    contest.tune_fastest()
    choice = contest.choice()
    if record and path.is_dir():
        write_json(_place(path), choice.to_dict())
    return choice


def load_choice(bundle_path: str | Path, *, remeasure: bool = True, **options: Any) -> Choice:
    """Return the choice stored in a bundle; measured anew (with `options`, as `choose_runtime` takes them) where there
    is none, the machine is another, or a file has another size.

    With `remeasure=False` raises ExportError instead.
    """
    path = Path(bundle_path)
    try:
        choice = Choice.read(_place(path))
    except ExportError as error:
        if not remeasure:
            raise
        return choose_runtime(path, **options)._replace(remeasured=(error.problem,))
    changed = differences(choice.machine, fingerprint()) + differences(choice.files, _files(path))
    if not changed:
        return choice
    if not remeasure:
        raise ExportError(
            f"{path} has a choice of runtime of another machine or other files",
            found="; ".join(changed),
            fix="measure again with deepseek.export.choose_runtime",
        )
    return choose_runtime(path, **options)._replace(remeasured=tuple(changed))


def check_writable(bundle: Path) -> None:
    """Raise StorageError where a bundle's `exports` folder can't be written to."""
    folder = bundle / "exports" if (bundle / "exports").is_dir() else bundle
    if bundle.is_dir() and not os.access(folder, os.W_OK):
        raise StorageError(f"{folder} can't be written to", fix="copy the bundle to a place where it can be changed")


class _Contest:
    """The trials of one bundle."""

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        metric: Metric | None,
        seconds: float,
        say: Callable[[str], object] | None,
    ) -> None:
        self._path, self._model, self._inputs, self._metric = path, model, inputs, metric
        self._say = say or (lambda line: None)
        self._seconds, self._spent, self._end = seconds, 0.0, time.monotonic() + seconds
        self._is_int8 = bool(int8_specs(model))
        self._rows: list[Row] = []
        self._best: Runtime | None = None
        self._best_speedup = 1.0
        self._complete = True
        eager = open_runtime("eager", model, example=inputs)
        axes = working_axes(model, inputs)
        sizes = {a: size for n, v in inputs.items() for a, size in zip(axes[n], v.shape, strict=True) if a is not None}
        self._probes = [inputs, *(resized(inputs, axes, sizes, seed) for seed in range(1, _PROBES))]
        self._wanted = [eager.run(probe) for probe in self._probes]
        self._before = self._figure(model)

    def run(self, runtimes: Sequence[str], precisions: Sequence[Precision]) -> None:
        """Try eager as it is first, then float32, bf16 and int8 forms of all runtimes, and compiled ones last."""
        own: Precision = "int8" if self._is_int8 else "fp32"
        plan = [("eager", own)]
        wanted = [own] if self._is_int8 else [one for one in PRECISIONS if one in precisions]
        plan += [(name, one) for one in wanted for name in runtimes if (name, one) not in plan]
        plan.sort(key=lambda pair: pair[0] == "inductor")  # it compiles for as long as all others run together
        share = max(0.05, min(2.0, 0.5 * self._seconds / len(plan)))
        for name, precision in plan:
            row = self._try(name, precision, share)
            self._rows.append(row)
            time_taken = "" if row.latency is None else f"{row.latency.p50_ms:.2f} ms "
            self._say(f"{name} {precision}: {time_taken}{row.status} {row.reason}".rstrip())
        self._refuse_slow_integers()

    def tune_fastest(self) -> None:
        """Spend what is left of the time on the settings of the fastest two."""
        for row in sorted(self._accepted(), key=_slowness)[:_FASTEST]:
            left = self._seconds - self._spent
            if left <= 0:
                self._complete = False
                return
            tuned = tune(
                lambda settings, row=row: self._open(row.runtime, row.precision, row.file, settings),  # type: ignore[misc]
                self._inputs,
                kind=row.runtime,
                seconds=left / _FASTEST,
                is_int8=row.precision == "int8",
            )
            self._complete &= tuned.complete
            speedup = (row.speedup or 1.0) * tuned.speedup
            index = self._rows.index(row)
            self._rows[index] = row._replace(settings=tuned.settings, latency=tuned.latency, speedup=speedup)
            self._say(f"{row.runtime} {row.precision}: tuned, {tuned.latency.p50_ms:.2f} ms ({tuned.speedup:.2f}x)")

    def choice(self) -> Choice:
        """Return the fastest row as the winner. Eager itself is always there."""
        best = min(self._accepted(), key=_slowness)
        rows = [row._replace(status="chosen") if row is best else row for row in self._rows]
        marked = with_front(rows)
        winner = next(row for row in marked if row.status == "chosen")
        shapes = {name: list(value.shape) for name, value in self._inputs.items()}
        return Choice(winner, marked, shapes, fingerprint(), _files(self._path), self._complete)

    def _try(self, name: str, precision: Precision, share: float) -> Row:
        file = self._file(name, precision)
        row = Row(name, precision, file=file)
        if name == "inductor" and time.monotonic() >= self._end:
            self._complete = False
            return row._replace(reason="the time was up, and compiling takes long")
        if name.partition(":")[0] in ("static", "onnxruntime", "openvino") and file is None:
            return row._replace(reason="the bundle has no such file in exports")
        if precision == "int8" and file is None and not self._is_int8:
            return row._replace(reason="the bundle's own weights are not int8")
        try:
            runtime = self._open(name, precision, file, Settings())
            seen = deviation_over(self._wanted, [runtime.run(probe) for probe in self._probes])
            after = self._figure(as_model(self._model, runtime))
            row = row._replace(deviation=seen, figure=after, bytes=self._bytes(file, precision))
            row = self._timed(row, runtime, share)
        except DeepSeekError as error:
            return row._replace(reason=_in_one_line(error))
        reason = objection(precision, seen, self._before, after)
        if reason is not None:
            return row._replace(status="refused", reason=reason)
        if self._best is None or (row.speedup or 1.0) > self._best_speedup:
            self._best, self._best_speedup = runtime, row.speedup or 1.0
        return row._replace(status="kept")

    def _timed(self, row: Row, runtime: Runtime, share: float) -> Row:
        start = time.monotonic()
        try:
            if self._best is None:
                return row._replace(latency=measure(runtime, self._inputs, seconds=share), speedup=1.0)
            old, new = measure_in_turn([self._best, runtime], self._inputs, seconds=share)
        finally:
            self._spent += time.monotonic() - start
        return row._replace(latency=new, speedup=self._best_speedup * old.p50_ms / new.p50_ms)

    def _refuse_slow_integers(self) -> None:
        fast = [row for row in self._accepted() if row.precision == "fp32"]
        best = min(fast, key=_slowness, default=None)
        for index, row in enumerate(self._rows):
            if best is None or row.status != "kept" or row.precision != "int8" or _slowness(row) <= _slowness(best):
                continue
            ratio = _slowness(row) / _slowness(best)
            reason = f"{ratio:.2f} times the time of fp32 in {best.runtime}"
            self._rows[index] = row._replace(status="refused", reason=reason)

    def _accepted(self) -> list[Row]:
        return [row for row in self._rows if row.status == "kept"]

    def _open(self, name: str, precision: Precision, file: str | None, settings: Settings) -> Runtime:
        source: Path | nn.Module = self._model if file is None else self._path / file
        wanted = None if file is None and precision != "bf16" else precision
        return open_runtime(name, source, precision=wanted, example=self._inputs, settings=settings)

    def _file(self, name: str, precision: Precision) -> str | None:
        if name.partition(":")[0] not in ("static", "onnxruntime", "openvino") or not self._path.is_dir():
            return None
        found = file_of(self._path, name, precision)
        if found is None and self._is_int8:
            found = file_of(self._path, name, None)
        return None if found is None else found.relative_to(self._path).as_posix()

    def _bytes(self, file: str | None, precision: Precision) -> int:
        if file is not None:
            return file_bytes(self._path / file)
        size = tensor_bytes(self._model)
        return size // 2 if precision == "bf16" else size

    def _figure(self, model: nn.Module) -> Figure | None:
        if self._metric is None:
            return None
        with evaluating(model):
            return main_figure(self._metric(model))


def file_bytes(path: Path) -> int:
    """Return the bytes of an exported file, with the weights of an OpenVINO IR, which lie beside it."""
    weights = path.with_suffix(".bin")
    beside = weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0
    return path.stat().st_size + beside


def _slowness(row: Row) -> float:
    return 1 / (row.speedup or 1e-9)


def _in_one_line(error: DeepSeekError) -> str:
    return error.problem if error.found is None else f"{error.problem} ({error.found})"


def _place(bundle: Path) -> Path:
    return bundle / "exports" / "runtime.json"


def _files(bundle: Path) -> dict[str, int]:
    """Return weights and exported files with their bytes; a choice holds only for these."""
    if not bundle.is_dir():
        return {}
    exports = bundle / "exports"
    found = [bundle / "model.safetensors", *sorted(exports.rglob("*"))]
    suffixes = {".safetensors", ".onnx", ".xml", ".bin", ".pt2"}
    return {one.relative_to(bundle).as_posix(): one.stat().st_size for one in found if one.suffix in suffixes}
