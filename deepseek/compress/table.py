"""What compression found, as tables for a terminal. Not here: the page (`deepseek.report`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_SHOWN_TIMES, _SHOWN_LOSS = 5, 0.05


def forms_table(report: Mapping[str, Any]) -> Table:
    """Return size, quality and time of each form of a report (`CompressReport.to_dict` or `SearchReport.to_dict`)."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    metric = metric_of(report)
    generates = any("token_ms" in row for row in report["rows"])
    heads = ["form", "size", metric or "", "worse", "one sample"]
    for head in heads + (["first token", "each next"] if generates else []):
        table.add_column(head, justify="left" if head == "form" else "right")
    for row in report["rows"]:
        cells: list[Text | str] = [Text(row["form"]), _size(row), _figure(row, metric), _drop(row), _time(row)]
        if generates:
            token = row.get("token_ms", {}).get("median")
            cells += [_ms(row.get("prefill_ms")), _ms(token)]
        table.add_row(*cells, style="green" if row["form"] == report.get("chosen") else None)
    return table


def form_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each form, as text: size, quality, time."""
    metric = metric_of(report)
    return [
        f"  {row['form']:<18} {_size(row):>10}   {metric} {_figure(row, metric):>8}   "
        + (
            f"first token {row['prefill_ms']:6.1f} ms   next {row['token_ms']['median']:6.2f} ms"
            if "token_ms" in row
            else f"one sample {_time(row)}"
        )
        for row in report["rows"]
    ]


def front_table(report: Mapping[str, Any]) -> Table:
    """Return the points of a search that no other point beats, the smallest first; those far too bad are left out."""
    search, metric = report["search"], metric_of(report)
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for head in ("on the front", "size", "one sample", "runtime", metric, "worse"):
        table.add_column(head, justify="left" if head in ("on the front", "runtime") else "right")
    worst = max(_SHOWN_TIMES * search["allowed"]["amount"], _SHOWN_LOSS)
    named = {report.get("chosen"), search.get("nearest")}
    points = [
        point
        for point in search["points"]
        if point["name"] in named or (point["name"] in search["front"] and (point.get("drop") or 0.0) <= worst)
    ]
    for point in sorted(points, key=lambda one: one["bytes"]):
        style = "green" if point["name"] == report.get("chosen") else None
        name = Text(point["name"] + (" (nearest)" if point["name"] == search.get("nearest") else ""))
        worse = _drop(point, search["allowed"]["relative"])
        figure = _figure(point, metric)
        table.add_row(name, _size(point), _ms(point["latency_ms"]), point["runtime"], figure, worse, style=style)
    return table


def metric_of(report: Mapping[str, Any]) -> str:
    """Return the name of the figure that decided; `perplexity` in reports from before there was a choice."""
    metric = report.get("metric")
    return str(metric["name"]) if isinstance(metric, Mapping) else "perplexity"


def _size(row: Mapping[str, Any]) -> str:
    size = float(row["bytes"])
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _figure(row: Mapping[str, Any], metric: str) -> str:
    value = row.get("figures", row).get(metric)
    return "-" if value is None else f"{value:.4g}"


def _drop(row: Mapping[str, Any], relative: bool = True) -> str:
    value = row.get("drop")
    if value is None:
        return "-"
    shown = max(0.0, float(value))
    return f"{shown:.2%}" if relative else f"{shown:.4g}"


def _time(row: Mapping[str, Any]) -> str:
    return _ms(row.get("latency_ms", {}).get("p50"))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms" if value >= 0.1 else f"{value * 1e3:.0f} µs"
