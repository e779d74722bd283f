"""The points of a search for a compressed model: size against time, and size against what quality it cost.

Not here: the search (`deepseek.compress.search`); its `front.json` and `results.json` have one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek.report import numbers
from deepseek.report.canvas import Canvas, color, draw
from deepseek.report.charts import tick
from deepseek.report.html import Html, both, join, tag
from deepseek.report.measured import named
from deepseek.report.parts import Row, figure, heading, table
from deepseek.report.run_folder import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAME = 34


@dataclass(frozen=True)
class Mark:
    """A measured form: megabytes, milliseconds for one sample, and how much worse it is (below zero: better)."""

    name: str
    size: float
    time: float
    worse: float
    on_front: bool = False
    chosen: bool = False
    label: bool = False


@dataclass(frozen=True)
class Limits:
    """What was asked for, in the units of `Mark`; `relative` says that `worse` is a part of the original's value."""

    size: float | None
    time: float | None
    worse: float
    relative: bool


def pareto(compress: Section) -> Html:
    """Return the picture and table of a search's points; nothing for a compression without a search."""
    search = compress.section("search")
    marks = _marks(compress, search)
    if not marks:
        return Html("")
    budget, allowed = search.section("budget"), search.section("allowed")
    size = budget.number("bytes")
    limits = Limits(
        None if size is None else size / 1e6,
        budget.number("latency_ms"),
        allowed.number("amount") or 0.0,
        allowed.get("relative") is True,
    )
    caption = both(
        "Each point is one form of the model as measured here. Filled: no other is as small, as fast and as good. "
        "Dashed: what was asked for.",
        "每个点是在本机测得的一种模型形式。实心：没有其他形式同样小、同样快、同样好。虚线：要求的上限。",
    )
    return join(
        [
            heading("Search for a budget", "按预算搜索"),
            figure("pareto", pareto_chart(marks, limits), caption),
            _table(compress, search, limits),
        ]
    )


def pareto_chart(marks: Sequence[Mark], limits: Limits) -> Html:
    """Draw size against time above size against loss of quality. Takes at least one mark."""

    def paint(canvas: Canvas) -> None:
        upper, lower = canvas.axes(28, 250, left=58.0), canvas.axes(300, 440, left=58.0)
        _scatter(canvas, upper, marks, [mark.time for mark in marks], limits.size, limits.time)
        upper.set_yscale("log")
        percent = 100.0 if limits.relative else 1.0
        losses = [max(0.0, mark.worse) * percent for mark in marks]
        top = max(limits.worse * percent * 4, min(max(losses), limits.worse * percent * 20), 1e-9)
        _scatter(canvas, lower, marks, [min(loss, top) for loss in losses], limits.size, limits.worse * percent)
        lower.set_ylim(-0.06 * top, top * 1.1)
        for axes in (upper, lower):
            _size_axis(canvas, axes, marks, limits)
        upper.tick_params(axis="x", labelbottom=False)
        _time_axis(upper)
        canvas.words_at(2, 14, canvas.say("milliseconds for one sample", "单个样本毫秒数"))
        words = ("worse by, percent", "变差（百分比）") if limits.relative else ("worse by", "变差")
        canvas.words_at(2, 286, canvas.say(*words))
        canvas.words_at(canvas.layout.width - 10, 476, canvas.say("megabytes", "兆字节"), align="right")

    return draw("pareto", 484.0, paint)


def _scatter(
    canvas: Canvas, axes: Axes, marks: Sequence[Mark], heights: Sequence[float], right: float | None, top: float | None
) -> None:
    for mark, height in zip(marks, heights, strict=True):
        role = "chosen" if mark.chosen else "train" if mark.on_front else "bar"
        filled = mark.on_front or mark.chosen
        axes.plot(
            [mark.size],
            [height],
            linestyle="",
            marker="o",
            markersize=10 if mark.chosen else 7,
            markerfacecolor=color(role) if filled else "none",
            markeredgecolor=color("whisker" if mark.chosen else role),
            clip_on=False,
        )
        if mark.label and not (canvas.narrow and not mark.chosen):
            name = mark.name if len(mark.name) <= MAX_NAME else mark.name[: MAX_NAME - 1] + "…"
            axes.annotate(
                canvas.say(name),
                (mark.size, height),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=12,
                color=color("text"),
                annotation_clip=False,
            )
    if right is not None:
        axes.axvline(right, color=color("muted"), linewidth=1.2, linestyle=(0, (5, 4)))
    if top is not None:
        axes.axhline(top, color=color("muted"), linewidth=1.2, linestyle=(0, (5, 4)))


def _size_axis(canvas: Canvas, axes: Axes, marks: Sequence[Mark], limits: Limits) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    sizes = [mark.size for mark in marks] + ([limits.size] if limits.size is not None else [])
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) * 0.7, max(sizes) * 1.5)
    steps = (1.0,) if canvas.narrow else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(f"{value:.3g}"))))


def _time_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    axes.set_ylim(low * 0.85, high * 1.25)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(f"{value:.3g}"))))


def _marks(compress: Section, search: Section) -> list[Mark]:
    """Return the points that have all three numbers."""
    front = search.get("front")
    names = set(front) if isinstance(front, list) else set()
    chosen, near = compress.text("chosen"), search.text("nearest")
    marks = []
    for point in search.sections("points"):
        name, size, time = point.text("name"), point.number("bytes"), point.number("latency_ms")
        worse = point.number("drop")
        if name is None or size is None or time is None or worse is None or size <= 0 or time <= 0:
            continue
        label = name in {chosen, near, "fp32"}
        marks.append(Mark(name, size / 1e6, time, worse, name in names, name == chosen, label))
    return marks


def _table(compress: Section, search: Section, limits: Limits) -> Html:
    """Return the table of all points, those of the front first, the smallest on top."""
    metric = compress.section("metric").text("name") or "loss"
    head = [both("Form", "形式"), both("Size", "大小"), both("One sample", "单个样本"), both("Runtime", "运行时")]
    head += [named(metric), both("Worse by", "变差")]
    chosen, names = compress.text("chosen"), search.get("front")
    front = set(names) if isinstance(names, list) else set()
    points = [point for point in search.sections("points") if point.text("name") and point.number("bytes") is not None]
    points.sort(key=lambda point: (point.text("name") not in front, point.number("bytes") or 0.0))
    rows = []
    for point in points:
        worse = max(0.0, point.number("drop") or 0.0)
        mark = tag("span", "✓ ", both("chosen", "选用"), class_="badge") if point.text("name") == chosen else ""
        rows.append(
            Row(
                [
                    join([point.text("name"), " ", mark]),
                    numbers.size(point.number("bytes")),
                    numbers.milliseconds(point.number("latency_ms")),
                    point.text("runtime") or numbers.DASH,
                    numbers.fixed(point.section("figures").number(metric)),
                    numbers.percent(worse, 2) if limits.relative else numbers.fixed(worse),
                ],
                marked=point.text("name") == chosen,
            )
        )
    return table(both("All points that were measured", "所有测得的点"), head, rows, "points")
