"""What a search found, as plain values for reports, and the refusal where nothing meets the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.compress.budget import Budget
from deepseek.compress.quality import Metric
from deepseek.compress.search.journal import finite
from deepseek.compress.units import Drop
from deepseek.errors import QuantizationError


class SearchReport(NamedTuple):
    """What a search found. Each point: `name`, `bytes`, `latency_ms`, `runtime`, `figures`, `drop` (how much worse
    the main figure is, relative or absolute as `allowed` is), `fits` and, where it failed, `error`."""

    path: Path
    points: tuple[dict[str, Any], ...]
    front: tuple[str, ...]
    """Names of the points that no other beats."""
    chosen: str | None
    nearest: str | None
    budget: Budget
    metric: Metric
    allowed: Drop
    finished: bool
    """Whether the ladder was walked as far as it had to be; False where time was out."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them (without the path); `rows` are the original and the chosen point."""
        shown = [point for point in self.points if point["name"] in ("fp32", self.chosen)]
        rows = [{"form": p["name"], "latency_ms": {"p50": p["latency_ms"]}} | _some(p) for p in shown]
        search = {
            "points": list(self.points),
            "front": list(self.front),
            "nearest": self.nearest,
            "budget": {"bytes": self.budget.bytes, "latency_ms": self.budget.latency_ms},
            "allowed": {"amount": self.allowed.amount, "relative": self.allowed.relative},
            "finished": self.finished,
        }
        values = {"rows": rows, "chosen": self.chosen, "metric": self.metric._asdict(), "search": search}
        plain: dict[str, Any] = finite(values)
        return plain


def refusal(report: SearchReport, place: Path) -> QuantizationError:
    """Return the error that says how near the search came; `place` holds all points."""
    near = next((point for point in report.points if point["name"] == report.nearest), None)
    found = "nothing could be measured"
    if near is not None:
        found = (
            f"{near['name']}: {near['bytes'] / 1e6:.4g} MB, {near['latency_ms']:.4g} ms ({near['runtime']}), "
            f"{report.metric.name} {near['figures'][report.metric.name]:.4g} ({max(0.0, near['drop']):.2%} worse)"
        )
    return QuantizationError(
        "nothing meets the budget; no bundle was written"
        if report.finished
        else "nothing met the budget in the time given; no bundle was written",
        found=f"nearest is {found}",
        wanted=f"{report.budget}, {report.metric.name} at most {report.allowed} worse",
        fix=("allow more, or longer trainings (training_steps)" if report.finished else "search again: it goes on")
        + f"; all points are in {place / 'front.json'}",
    )


def _some(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: point[name] for name in ("bytes", "figures", "drop", "runtime") if name in point}
