"""A bundle of any task, ready to be served: on its fastest runtime, warmed up, its golden samples answered.

Not here: batching requests (see `engine`), and natural inputs such as images (see `forms`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from deepseek.bundle import Bundle, load
from deepseek.errors import BundleError, DeepSeekError, RequestError
from deepseek.export.runtimes.as_model import as_model
from deepseek.export.runtimes.eager import EagerRuntime
from deepseek.export.runtimes.onnx_runtime import OnnxRuntime
from deepseek.export.runtimes.runtime import Runtime
from deepseek.export.signature import Signature
from deepseek.golden import Golden, check_golden
from deepseek.hardware import physical_cores
from deepseek.serve.tensor.arrays import Around, array_run, to_arrays
from deepseek.serve.tensor.batch import Arrays
from deepseek.serve.tensor.choose import Plan, eager_plan, plan_for
from deepseek.serve.tensor.describe import Described, paddable, rows_are_apart, with_derived
from deepseek.serve.tensor.limits import INLINE_SECONDS, TensorLimits

_LOG = logging.getLogger("deepseek.serve")

Run = Callable[[Arrays], Mapping[str, np.ndarray]]
_GOLDEN_SLACK = {"fp32": 1.0, "bf16": 2.0, "int8": 4.0}
"""Times the tolerance stored with the golden samples, which is that of float32."""
_WARM_SECONDS = 1.0
_REPEATS = 5
_LONGEST_RUN = 0.25


class TensorModel:
    """A bundle on a runtime. `timings` has the seconds of each phase of loading."""

    def __init__(self, bundle: Bundle, limits: TensorLimits | None = None) -> None:
        """Raises BundleError for a model without example inputs or one that can't be run on arrays."""
        self.bundle = bundle
        self.limits = limits or TensorLimits()
        self.timings: dict[str, float] = {}
        self.seconds: dict[int, float] = {}
        """Seconds of a run by its rows, as measured in warm-up."""
        self._device = next(iter(bundle.model.state_dict().values())).device
        try:
            with self._timed("describe"):
                self._described = Described(bundle.model, self.limits.max_size)
            with self._timed("runtime"):
                self.plan = plan_for(bundle, self._device, self.limits.measure_seconds)
                self._runs = self._open()
                self._spare_threads()
            with self._timed("try"):
                self._try()
        except BundleError:
            raise
        except (DeepSeekError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise BundleError(
                f"{bundle.path} can't be served",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                wanted="a model of our templates that answers its own example inputs",
            ) from error
        with self._timed("fingerprint"):
            self.fingerprint = f"{_digest(bundle.path)}-{self.plan.runtime}-{self.plan.precision}"
        _LOG.info("%s: %s in %s (%s)", bundle.path.name, self.plan.runtime, self.plan.precision, self.plan.reason)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", limits: TensorLimits | None = None) -> Self:
        """Read a bundle and open its runtime. Raises BundleError."""
        start = time.monotonic()
        bundle = load(path, device=device)
        opened = time.monotonic() - start
        model = cls(bundle, limits)
        model.timings = {"open": opened, **model.timings}
        return model

    @property
    def instances(self) -> int:
        """Runs that go side by side."""
        return len(self._runs)

    def runners(self, count: int) -> list[Run]:
        """Return a function for each of `count` runs side by side."""
        return [self._runs[index % len(self._runs)] for index in range(count)]

    def run(self, inputs: Arrays) -> Mapping[str, np.ndarray]:
        """Run once, unchecked and alone. Raises what the runtime raises."""
        return self._runs[0](inputs)

    def example(self, rows: int = 1) -> dict[str, np.ndarray]:
        """Return made-up inputs that the model takes."""
        return self._described.example(self.signature, rows)

    def warm_up(self) -> None:
        """Run at growing numbers of rows, so that requests find everything in place, and keep the times."""
        end = time.monotonic() + _WARM_SECONDS
        rows, most = 1, self.limits.max_batch if self.signature.batch_axis else 1
        for run in self._runs[1:]:
            run(self.example())
        while rows <= most:
            self.seconds[rows] = _median_seconds(self._runs[0], self.example(rows))
            if time.monotonic() > end or self.seconds[rows] > _LONGEST_RUN:
                break
            rows *= 2

    def verify(self) -> None:
        """Answer the golden samples through the runtime that serves, then warm up. Raises BundleError."""
        golden = self.bundle.golden
        with self._timed("golden"):
            if golden is None:
                _LOG.warning("%s has no golden samples: its answers can't be checked", self.bundle.path)
            else:
                stand_in = as_model(self.bundle.model, _Served(self._runs[0], self._runtime_signature))
                check_golden(stand_in, _widened(golden, _GOLDEN_SLACK[self.plan.precision]), str(self.bundle.path))
        with self._timed("warm_up"):
            self.warm_up()

    def explain(self, error: Exception) -> Exception:
        """Return whose fault an error of a run was: the request's, if the model still answers its own example."""
        if isinstance(error, RequestError):
            return error
        try:
            self._runs[0](self.example())
        except Exception:
            return error
        _LOG.info("%s could not run a request: %s", self.bundle.path.name, error)
        said = error.problem if isinstance(error, DeepSeekError) else type(error).__name__
        refusal = RequestError("the model can't run on these values", field="inputs", found=said[:200])
        refusal.__cause__ = error
        return refusal

    def _open(self) -> list[Run]:
        """Open the runtime, once for each instance where instances can't share it; PyTorch itself where it fails."""
        try:
            return self._open_plan(self.plan)
        except (DeepSeekError, RuntimeError, OSError) as error:
            if self.plan.runtime == "eager":
                raise
            _LOG.warning("%s: %s does not open, so PyTorch itself serves it: %s", self.bundle.path, self.plan[0], error)
            self.plan = eager_plan(self.bundle, f"{self.plan.runtime} does not open")
            return self._open_plan(self.plan)

    def _spare_threads(self) -> None:
        """Give a model of very short runs one thread: more gain it nothing, and idle ones spin."""
        kind = self.plan.runtime.partition(":")[0]
        if kind not in ("onnxruntime", "openvino") or self.plan.settings.threads == 1:
            return
        example = self._described.example(self.signature, 1)
        if _median_seconds(self._runs[0], example) < INLINE_SECONDS:
            self.plan = self.plan._replace(settings=self.plan.settings._replace(threads=1, spinning=None))
            self._runs = self._open()

    def _open_plan(self, plan: Plan) -> list[Run]:
        general = plan.open(self.bundle, plan.settings._replace(sizes={}))
        told = self._described.own if plan.file is None else general.signature
        row_by_row = self._is_row_by_row(told)
        self.signature = self._described.signature(told, row_by_row=row_by_row)
        self._runtime_signature = told
        threads = plan.settings.threads
        count = self.limits.instances or max(1, physical_cores() // (threads or physical_cores()))
        if isinstance(general, EagerRuntime | OnnxRuntime):  # one copy of the weights serves several threads
            return [self._run_of(general, plan, row_by_row)] * count
        if plan.runtime.partition(":")[0] != "openvino" or self._device.type != "cpu":
            return [self._run_of(general, plan, row_by_row)]
        others = [plan.open(self.bundle, plan.settings._replace(sizes={})) for _ in range(count - 1)]
        return [self._run_of(one, plan, row_by_row) for one in (general, *others)]

    def _run_of(self, runtime: Runtime, plan: Plan, row_by_row: bool) -> Run:
        names = self._described.names(self._runtime_signature)
        around = Around(self._device, plan.settings.threads, names, self._described.halves)
        run: Run = array_run(runtime, around)
        if plan.settings.sizes and plan.file is not None:
            run = self._with_fixed(run, plan, around)
        return _one_by_one(run) if row_by_row else run

    def _with_fixed(self, general: Run, plan: Plan, around: Around) -> Run:
        """Return a run that takes the form made for one size where it fits, and the general one for all others."""
        fixed = plan.open(self.bundle)
        shapes = {spec.name: spec.shape for spec in fixed.signature.inputs}
        if any(isinstance(size, str) for shape in shapes.values() for size in shape):
            return general
        fast = array_run(fixed, around)

        def run(arrays: Arrays) -> Mapping[str, np.ndarray]:
            fits = all(arrays[name].shape == shape for name, shape in shapes.items())
            return fast(arrays) if fits else general(arrays)

        return run

    def _is_row_by_row(self, runtime: Signature) -> bool:
        """Return whether the exported form takes one row only. Raises BundleError where it is fixed to more."""
        first = {spec.shape[0] for spec in runtime.inputs if spec.shape}
        fixed = {size for size in first if isinstance(size, int)}
        if fixed - {1}:
            raise BundleError("the exported form takes a fixed number of rows", found=sorted(fixed), wanted="any")
        free = any(axes[:1] == ("batch",) for axes in self._described.axes.values())
        return bool(fixed) and free

    def _try(self) -> None:
        """Find out whether rows share a run unharmed, and which lengths may be padded."""
        self.pad_axes: frozenset[str] = frozenset()
        if not self.signature.batch_axis:
            return
        precision, run = self.plan.precision, self._runs[0]
        example = self._described.example(self.signature, 3)
        if not rows_are_apart(run, example, precision):
            _LOG.warning("%s: rows of one run touch each other, so requests run alone", self.bundle.path.name)
            self.signature = self.signature._replace(batch_axis=False)
            return
        self.signature = with_derived(run, self.signature, example)
        self.pad_axes = paddable(run, self.signature, example, precision)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = time.monotonic() - start


class _Served:
    """What serves, in the form of a runtime, so that golden samples go the way of requests."""

    def __init__(self, run: Run, signature: Signature) -> None:
        self._run = run
        self.signature = signature

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(value)) for name, value in self._run(to_arrays(inputs)).items()}


def _median_seconds(run: Run, inputs: Arrays) -> float:
    """Return the time of a run, after one that does not count."""
    run(inputs)
    taken: list[float] = []
    while len(taken) < _REPEATS and not (taken and taken[-1] > _LONGEST_RUN):
        start = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _one_by_one(run: Run) -> Run:
    def rows(arrays: Arrays) -> Mapping[str, np.ndarray]:
        count = len(next(iter(arrays.values())))
        if count == 1:
            return run(arrays)
        found = [run({name: value[i : i + 1] for name, value in arrays.items()}) for i in range(count)]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    return rows


def _widened(golden: Golden, factor: float) -> Golden:
    answers = [{**answer, "tolerance": answer["tolerance"] * factor} for answer in golden["answers"]]
    return {**golden, "answers": answers}


def _digest(path: Path) -> str:
    """Return a digest of what decides the answers: config, weights and tokenizer."""
    digest = hashlib.sha256()
    names = ("config.yaml", "model.safetensors", "tokenizer.json")
    for file in [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]:
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:32]
