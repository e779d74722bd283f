"""The search: up the ladder, each candidate measured once and written down, until one meets the budget.

What was measured outlives the search: a killed one goes on where it was, and another budget reads the same journal.
Not here: making a candidate (`workshop`), choosing among points (`front`).
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deepseek import bundle as bundles
from deepseek.compress.budget import Budget
from deepseek.compress.config import CompressConfig
from deepseek.compress.measure import bytes_on_disk, eager_latency, figures_of, sample_inputs
from deepseek.compress.quality import Metric, drop, main_metric, passes
from deepseek.compress.search.deployment import deployed
from deepseek.compress.search.front import cheapest, nearest, pareto
from deepseek.compress.search.journal import Journal, subject_of
from deepseek.compress.search.ladder import Candidate, Rung, ladder
from deepseek.compress.search.result import SearchReport, refusal
from deepseek.compress.search.workshop import Workshop, file_name
from deepseek.compress.stage import save_like
from deepseek.compress.units import Drop
from deepseek.errors import ConfigError, DeepSeekError, RunLockedError, StorageError
from deepseek.files import atomic_folder, folder_lock, write_json
from deepseek.tasks.build import build_task
from deepseek.tasks.task import Task

_TRAINING_SHARE = 0.3

OnPoint = Callable[["Progress"], None]
"""Is told how far the search is."""


class Progress(NamedTuple):
    """How far a search is: the rung, the candidate that is made next, and the points so far."""

    rung: str
    candidate: str
    points: int
    seconds_left: float
    best: Mapping[str, Any] | None
    """The cheapest point that meets the budget so far."""


def search_budget(
    bundle_path: str | Path,
    out_path: str | Path,
    batches: Iterable[Any],
    *,
    config: CompressConfig,
    calibration_data: Sequence[Any] | None = None,
    train_data: Any = None,
    task: Task | None = None,
    folder: str | Path | None = None,
    on_point: OnPoint | None = None,
) -> SearchReport:
    """Find the cheapest form of the bundle's model that meets `config.budget()`, and write it to `out_path`.

    `batches` are validation batches (a list), `calibration_data` batches to find ranges with (without them, `batches`
    serve). `train_data` is what `Trainer` takes; without it nothing is pruned or learned. A bundle that is at
    `out_path` is replaced. `folder` holds the journal and trained models, by default `OUT-search` beside it; its
    `front.json` is this report. Raises ConfigError for a config without size and latency, an iterator or a target that
    is no bundle, QuantizationError where nothing meets the budget: it names the nearest point; no bundle is written.
    """
    budget, out = config.budget(), Path(out_path)
    if budget is None:
        raise ConfigError("the search has no budget", fix="set size, latency or both")
    if iter(batches) is batches:
        raise ConfigError(
            "the batches can be read only once", found=type(batches).__name__, fix="pass a list of batches"
        )
    if out.exists() and out.suffix != ".pt" and not (out / "config.yaml").is_file():
        raise ConfigError(f"{out} exists and is not a bundle", fix="choose another place, or remove it first")
    place = Path(folder) if folder is not None else search_folder(out)
    bundle = bundles.load(bundle_path, device="cpu")
    task = task or build_task({"name": bundle.config.task, **bundle.config.task_settings})
    with folder_lock(place):
        workshop = Workshop(bundle, task, batches, calibration_data or batches, train_data, config, place)
        search = _Search(workshop, budget, place, on_point)
        finished = search.walk()
        report = search.report(out, finished)
        write_json(place / "front.json", report.to_dict())
        if report.chosen is None:
            raise refusal(report, place)
        search.write(report)
    return report


def search_folder(out: Path) -> Path:
    """Return where the search for a bundle keeps its journal."""
    return out.with_name(f"{out.stem if out.suffix == '.pt' else out.name}-search")


class _Search:
    """One life of a search."""

    def __init__(self, workshop: Workshop, budget: Budget, place: Path, on_point: OnPoint | None) -> None:
        self.workshop, self.budget = workshop, budget
        self.bundle, self.task, self.config = workshop.bundle, workshop.task, workshop.config
        self.batches = workshop.batches
        self.place, self.on_point = place, on_point or (lambda progress: None)
        self.deadline = time.monotonic() + budget.seconds
        subject = subject_of(self.bundle.path, self.batches, _settings(self.config))
        self.journal = Journal(place, subject)
        if self.journal.is_new:
            workshop.clean()
        self.can_train = workshop.train_data is not None
        self.inputs = sample_inputs(self.bundle.model, next(iter(self.batches)))
        self.metric: Metric | None = None

    def walk(self) -> bool:
        """Climb until a rung has a point that meets the budget; return False where time was out before."""
        shop = self.workshop
        rungs = ladder(self.config, can_train=self.can_train, can_prune=shop.can_prune)
        for rung in rungs:
            if self._cannot_fit(rung):
                continue
            for candidate in rung.candidates:
                if self._is_settled(candidate) or self._adds_nothing(candidate):
                    continue
                if candidate.name != "fp32" and time.monotonic() >= self.deadline:
                    return False
                self._tell(rung, candidate)
                self.journal.add(self._measured(candidate))
            if not self.config.thorough and (self._best() is not None or self._only_worse_from(rung)):
                return True
        return True

    def report(self, out: Path, finished: bool) -> SearchReport:
        """Return what is known now."""
        points = self._points()
        good = [point for point in points if "error" not in point]
        best, near = self._best(), nearest(pareto(good), self.budget, self._allowed.amount)
        return SearchReport(
            out,
            tuple(points),
            tuple(str(point["name"]) for point in pareto(good)),
            str(best["name"]) if best is not None else None,
            str(near["name"]) if best is None and near is not None else None,
            self.budget,
            self._metric,
            self._allowed,
            finished,
        )

    def write(self, report: SearchReport) -> None:
        """Write the chosen bundle with its exported form. It was kept when it was measured."""
        kept = self.place / "models" / file_name(str(report.chosen))
        bundles.load(kept, device="cpu").verify()
        added = {"compress": report.to_dict()}
        if report.path.suffix == ".pt":
            save_like(self.bundle, bundles.load(kept, device="cpu").model, report.path, added)
            return
        with atomic_folder(report.path, replace=True) as folder:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            stored = kept / "report.json"
            earlier = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
            text = json.dumps({**earlier, **added}, indent=2, ensure_ascii=False)
            (folder / "report.json").write_text(text, encoding="utf-8")

    def _measured(self, candidate: Candidate) -> dict[str, Any]:
        """Make and measure a candidate. What it can't be is written down, and not tried again."""
        start = time.monotonic()
        left = max(1.0, self.deadline - start)
        if candidate.name == "fp32":
            return self._point(candidate, self.bundle.model, start)
        try:
            model = self.workshop.make(candidate, self._original, left * _TRAINING_SHARE)
            return self._point(candidate, model, start)
        except (StorageError, RunLockedError):
            raise
        except (DeepSeekError, RuntimeError) as error:  # torch has no kernel for some formats of some layers
            text = error.problem if isinstance(error, DeepSeekError) else str(error).strip().partition("\n")[0]
            return {"name": candidate.name, "error": text or type(error).__name__}

    def _point(self, candidate: Candidate, model: nn.Module, start: float) -> dict[str, Any]:
        times = eager_latency(model, self.inputs)
        point: dict[str, Any] = {
            "name": candidate.name,
            "bytes": bytes_on_disk(model),
            "figures": figures_of(model, self.batches, self.task),
            "runtime": "eager",
            "latency_ms": times["p50"],
        }
        if self.metric is None:
            self.metric = main_metric(point["figures"])
        if self._may_pass(point):
            kept = self.place / "models" / file_name(candidate.name)
            save_like(self.bundle, model, kept, {})
            figures = lambda one: figures_of(one, self.batches, self.task)  # noqa: E731
            seen = itertools.islice(self.workshop.calibration, self.config.calibration_batches)
            point |= deployed(kept, model, self.inputs, figures, times["p50"], self.config.runtimes, seen)
        return point | {"seconds": time.monotonic() - start}

    def _may_pass(self, point: Mapping[str, Any]) -> bool:
        """Return whether a faster runtime is all that a point may lack."""
        return (self.budget.bytes is None or point["bytes"] <= self.budget.bytes) and self._is_good(point)

    def _is_good(self, point: Mapping[str, Any]) -> bool:
        """Return whether a point is at most so much worse than the original as is allowed."""
        before = self.journal.points["fp32"]["figures"] if "fp32" in self.journal else point["figures"]
        return passes(self._metric, before, point["figures"], self._allowed)

    def _points(self) -> list[dict[str, Any]]:
        """Return the journal's points, each with what it lost and whether it is within the budget."""
        found = []
        for point in self.journal.points.values():
            if "error" not in point:
                lost = drop(self._metric, self._original, point["figures"], relative=self._allowed.relative)
                point = {**point, "drop": lost, "fits": self.budget.fits(point) and lost <= self._allowed.amount}
            found.append(dict(point))
        return found

    def _best(self) -> Mapping[str, Any] | None:
        good = [point for point in self._points() if "error" not in point and self._is_kept(point)]
        return cheapest(good, self.budget, self._allowed.amount)

    def _is_settled(self, candidate: Candidate) -> bool:
        """Return whether all is known of a candidate; one that another budget passed over has to be made again."""
        point = self.journal.points.get(candidate.name)
        return point is not None and ("error" in point or not self._may_pass(point) or self._is_kept(point))

    def _adds_nothing(self, candidate: Candidate) -> bool:
        """Return whether a mix of formats can be no smaller: int4 in all layers is good enough already."""
        lowest = self.journal.points.get(candidate._replace(form="int4").name)
        return candidate.form == "mixed" and lowest is not None and "error" not in lowest and self._is_good(lowest)

    def _is_kept(self, point: Mapping[str, Any]) -> bool:
        return (self.place / "models" / file_name(str(point["name"])) / "config.yaml").is_file()

    def _cannot_fit(self, rung: Rung) -> bool:
        """Return whether even the smallest format of a pruned model would be past the size: pruning takes at most the
        square of what is left of the channels from a weight."""
        ratio = rung.candidates[0].ratio
        sizes = [point["bytes"] for point in self._points() if "bytes" in point and "pruned" not in point["name"]]
        if not ratio or self.budget.bytes is None or not sizes:
            return False
        return bool(min(sizes) * (1 - ratio) ** 2 > self.budget.bytes)

    def _only_worse_from(self, rung: Rung) -> bool:
        """Return whether a pruned model is small and fast enough but no longer good: the next ones lose more."""
        names = {candidate.name for candidate in rung.candidates if candidate.ratio}
        return any(
            self.budget.fits(point) for point in self._points() if point["name"] in names and "error" not in point
        )

    @property
    def _original(self) -> dict[str, float]:
        figures: dict[str, float] = self.journal.points["fp32"]["figures"]
        return figures

    @property
    def _metric(self) -> Metric:
        return self.metric or main_metric(self._original)

    @property
    def _allowed(self) -> Drop:
        return self.config.allowed_drop(self._metric.name)

    def _tell(self, rung: Rung, candidate: Candidate) -> None:
        best = self._best() if "fp32" in self.journal else None
        left = max(0.0, self.deadline - time.monotonic())
        self.on_point(Progress(rung.name, candidate.name, len(self.journal.points), left, best))


def _settings(config: CompressConfig) -> dict[str, Any]:
    """Return the settings that change what is measured; limits and time do not."""
    names = ("quant_scheme", "calibration", "calibration_batches", "embeddings", "skip", "runtimes", "training_steps")
    return {name: config.to_dict()[name] for name in (*names, "learning_rate")}
