"""The report's three charts: loss, throughput, latency. Each takes plain numbers and returns inline SVG.

Not here: captions, legends and where the numbers come from.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek.report import numbers
from deepseek.report.canvas import Canvas, color, draw
from deepseek.report.curves import Curve, envelope, smooth, thin
from deepseek.report.html import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Bar:
    """One form of a model: milliseconds for a token, and between which two values 80% of them lie."""

    form: str
    median: float
    p10: float
    p90: float
    chosen: bool = False


def loss_chart(
    train: Curve,
    validation: Curve,
    rate: Curve,
    *,
    unigram: float | None = None,
    bigram: float | None = None,
    per_token: bool = True,
) -> Html:
    """Loss (in nats, where it is `per_token`) over steps: training (raw and smoothed), validation, the two counting
    models' losses as horizontal lines, and the learning rate in a small strip below (left out where `rate` is empty).
    """
    references = {"unigram": unigram, "bigram": bigram}
    lines = {name: value for name, value in references.items() if value is not None}
    smoothed = smooth(train)

    def paint(canvas: Canvas) -> None:
        strip = bool(rate)
        height = canvas.height
        axes = canvas.axes(28, height - (118 if strip else 42))
        words = ("loss (nats per token)", "损失（nat / 词元）") if per_token else ("loss", "损失")
        canvas.words_at(2, 14, canvas.say(*words))
        _draw_losses(canvas, axes, train, smoothed, validation)
        _limit_losses(axes, train, validation, lines)
        _draw_references(canvas, axes, lines)
        every = [*train.x, *validation.x]
        below = [axes]
        if strip:
            below.append(_draw_rate(canvas, height, rate))
            axes.tick_params(axis="x", labelbottom=False)
        for part in below:
            part.set_xlim(min(0.0, *every), max(every) or 1.0)
            _count_ticks(canvas, part)
        canvas.words_at(canvas.layout.width - 10, height - 6, canvas.say("training step", "训练步"), align="right")

    return draw("loss", 400.0 if rate else 330.0, paint)


def _draw_losses(canvas: Canvas, axes: Axes, train: Curve, smoothed: Curve, validation: Curve) -> None:
    raw = envelope(train)
    axes.plot(raw.x, raw.y, color=color("raw"), linewidth=0.9)
    line = thin(smoothed)
    axes.plot(line.x, line.y, color=color("train"), linewidth=2.2, marker="o" if len(line.x) == 1 else "")
    marks = thin(validation, 60)
    axes.plot(
        marks.x, marks.y, color=color("validation"), linewidth=1.6, marker="o" if len(marks.x) <= 24 else "", ms=4.5
    )
    if marks:
        axes.plot(marks.x[-1:], marks.y[-1:], color=color("validation"), marker="o", markersize=5, clip_on=False)
        label = canvas.say(numbers.fixed(marks.y[-1], 2))
        axes.annotate(
            label,
            (marks.x[-1], marks.y[-1]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="right",
            fontsize=12.5,
            color=color("validation"),
            annotation_clip=False,
        )


def _limit_losses(axes: Axes, train: Curve, validation: Curve, lines: dict[str, float]) -> None:
    """Show the range that matters: with reference lines, a tenth of the steps may start above the frame."""
    from matplotlib.ticker import MaxNLocator

    every = [*train.y, *validation.y, *lines.values()]
    low, high = min(every), max(every)
    if lines:
        reference = max(lines.values())
        later = [*train.y[len(train.y) // 10 :], *validation.y]
        high = min(high, max(*later, reference + 0.4 * (reference - low)))
    pad = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _draw_references(canvas: Canvas, axes: Axes, lines: dict[str, float]) -> None:
    chinese = {"unigram": "单词元模型", "bigram": "双词元模型"}
    bottom, top = axes.get_ylim()
    pixels = axes.get_position().height * canvas.height / (top - bottom)
    close = len(lines) == 2 and abs(lines["unigram"] - lines["bigram"]) * pixels < 18
    for name, value in lines.items():
        below = close and value == min(lines.values())
        axes.axhline(value, color=color(name), linewidth=1.4, linestyle=(0, (5, 4)))
        axes.annotate(
            canvas.say(f"{name} {value:.2f}", f"{chinese[name]} {value:.2f}"),
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -14 if below else 5),
            textcoords="offset points",
            ha="right",
            fontsize=12.5,
            color=color(name),
        )


def _draw_rate(canvas: Canvas, height: float, rate: Curve) -> Axes:
    axes = canvas.axes(height - 82, height - 42)
    peak = max(rate.y)
    canvas.words_at(
        2,
        height - 92,
        canvas.say(f"learning rate (peak {peak:.2g})", f"学习率（峰值 {peak:.2g}）"),
    )
    line = thin(rate)
    axes.fill_between(line.x, line.y, color=color("bar"), alpha=0.35, linewidth=0)
    axes.plot(line.x, line.y, color=color("muted"), linewidth=1.2)
    axes.set_ylim(0, (peak or 1.0) * 1.1)
    axes.set_yticks([])
    return axes


_THROUGHPUT_X = {
    "step": ("training step", "训练步"),
    "s": ("elapsed time (s)", "已用时间（秒）"),
    "min": ("elapsed time (min)", "已用时间（分）"),
    "h": ("elapsed time (h)", "已用时间（时）"),
}


def throughput_chart(curve: Curve, *, over_time: bool, tokens: bool = True) -> Html:
    """Tokens, or targets of another kind, per second over elapsed seconds (shown in seconds, minutes or hours) or,
    where those lack, over steps."""
    unit, divisor = _time_unit(max(curve.x)) if over_time else ("step", 1.0)
    line = envelope(Curve([x / divisor for x in curve.x], curve.y), 110)
    middle = statistics.median(curve.y)

    def paint(canvas: Canvas) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = canvas.axes(28, canvas.height - 42)
        axes.fill_between(line.x, line.y, color=color("train"), alpha=0.12, linewidth=0)
        axes.plot(line.x, line.y, color=color("train"), linewidth=1.6, marker="o" if len(line.x) == 1 else "")
        axes.axhline(middle, color=color("muted"), linewidth=1.0, linestyle=(0, (5, 4)))
        axes.set_ylim(0, max(curve.y) * 1.12 if max(curve.y) > 0 else 1.0)
        axes.set_xlim(min(0.0, *line.x), max(line.x) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _count_ticks(canvas, axes)
        right = canvas.layout.width - 10
        median = canvas.say(f"median {numbers.short(middle)}", f"中位数 {numbers.short(middle)}")
        words = ("tokens per second", "词元 / 秒") if tokens else ("targets per second", "目标 / 秒")
        canvas.words_at(2, 14, canvas.say(*words))
        canvas.words_at(right, 14, median, align="right", role="text")
        canvas.words_at(right, canvas.height - 6, canvas.say(*_THROUGHPUT_X[unit]), align="right")

    return draw("throughput", 250.0, paint)


def _time_unit(longest: float) -> tuple[str, float]:
    return ("s", 1.0) if longest < 180 else ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)


def latency_chart(bars: Sequence[Bar]) -> Html:
    """Milliseconds for one token: a bar to the median of each form, a line from p10 to p90. Takes at least one bar."""
    row = 54.0
    longest = max(max(bar.p90, bar.median) for bar in bars) or 1.0

    def paint(canvas: Canvas) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = canvas.axes(4, 4 + row * len(bars) + 8, left=2.0)
        axes.grid(False)
        for index, bar in enumerate(bars):
            _draw_bar(canvas, axes, bar, index * row + 36)
        axes.set_ylim(row * len(bars) + 8, 0)
        axes.set_xlim(0, longest * (1.3 if canvas.narrow else 1.14))
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if canvas.narrow else 8, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        words = canvas.say("milliseconds per token", "毫秒 / 词元")
        canvas.words_at(canvas.layout.width - 10, canvas.height - 6, words, align="right")

    return draw("latency", row * len(bars) + 58.0, paint)


def _draw_bar(canvas: Canvas, axes: Axes, bar: Bar, y: float) -> None:
    axes.barh(y, bar.median, height=18, color=color("chosen" if bar.chosen else "bar"), linewidth=0)
    ends = [([bar.p10, bar.p90], [y, y]), *(([end, end], [y - 5, y + 5]) for end in (bar.p10, bar.p90))]
    for x, height in ends:
        axes.plot(x, height, color=color("whisker"), linewidth=1.6)
    name = canvas.say(f"{bar.form}  ✓ chosen", f"{bar.form}  ✓ 选用") if bar.chosen else canvas.say(bar.form)
    axes.annotate(name, (0, y - 16), fontsize=13, color=color("text"), annotation_clip=False)
    axes.annotate(
        canvas.say(numbers.milliseconds(bar.median)),
        (max(bar.median, bar.p90), y),
        xytext=(8, -4),
        textcoords="offset points",
        fontsize=12.5,
        color=color("text"),
        annotation_clip=False,
    )


def _count_ticks(canvas: Canvas, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if canvas.narrow else 8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """A tick's text: `0.5`, `250`, `1.5k`, `20k`, `1.5M`."""
    for divisor, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= divisor:
            return f"{value / divisor:g}{letter}"
    return f"{value:g}"
