"""What came out of the run: the compressed forms, the export and its checks, and the first question to the server."""

from __future__ import annotations

from deepseek.report import numbers
from deepseek.report.charts import Bar, latency_chart
from deepseek.report.headline import compress_rows
from deepseek.report.html import Html, both, join, safe, tag
from deepseek.report.measured import named
from deepseek.report.pareto import pareto
from deepseek.report.parts import Part, Row, facts, figure, heading, intro, table
from deepseek.report.run_folder import Run, Section

MAX_FORM_CHARACTERS = 30


def compression(run: Run) -> Part | None:
    """Return the table of forms, each compared with the first, the chart of their latency, and a search's points."""
    compress = run.results.section("compress")
    rows = [row for row in compress.sections("rows") if row.text("form")]
    searched = pareto(compress)
    if not rows and not searched:
        return None
    before, after = compress_rows(run)
    base = before.text("form")
    words = intro(
        f"The same model in several forms; changes are against {base}.",
        f"同一模型的几种形式；变化均相对于 {base}。",
    )
    metric = compress.section("metric").text("name") or "perplexity"
    generates = any(row.section("token_ms") for row in rows)
    head = [both("Form", "格式"), both("Size", "大小"), named(metric)]
    if generates:
        head += [both("Prefill", "读入提示"), both("Per token", "每词元"), Html("p10 – p90")]
    else:
        head += [both("One sample", "单个样本")]
    body = [_form(row, before, metric, generates, bool(after) and row.get("form") == after.get("form")) for row in rows]
    name = both("Size, quality and speed of each form", "各格式的大小、质量与速度")
    whole = join([words, table(name, head, body, "forms"), _latency(run), searched])
    return Part("compression", both("Compression", "压缩"), whole)


def _form(row: Section, before: Section, metric: str, generates: bool, chosen: bool) -> Row:
    mark = tag("span", "✓ ", both("chosen", "选用"), class_="badge") if chosen else ""
    is_base = row.get("form") == before.get("form")

    def compared(shown: str, value: float | None, base: float | None) -> Html:
        return join([shown, "" if is_base else _change(value, base)])

    cells = [
        join([row.text("form") or numbers.DASH, " ", mark]),
        compared(numbers.size(row.number("bytes")), row.number("bytes"), before.number("bytes")),
        _quality(row, before, metric, is_base),
    ]
    if not generates:
        time, first = row.section("latency_ms").number("p50"), before.section("latency_ms").number("p50")
        return Row([*cells, compared(numbers.milliseconds(time), time, first)], marked=chosen)
    token, first_token = row.section("token_ms"), before.section("token_ms")
    low, high = token.number("p10"), token.number("p90")
    prefill, median = row.number("prefill_ms"), token.number("median")
    cells += [
        compared(numbers.milliseconds(prefill), prefill, before.number("prefill_ms")),
        compared(numbers.milliseconds(median), median, first_token.number("median")),
        Html(numbers.DASH) if low is None or high is None else safe(f"{low:.2f} – {numbers.milliseconds(high)}"),
    ]
    return Row(cells, marked=chosen)


def _quality(row: Section, before: Section, metric: str, is_base: bool) -> Html:
    """Return the figure that decides; a change is good or bad by `drop`, which says how much worse it is."""
    found = row.section("figures").number(metric)
    value = found if found is not None else row.number(metric)
    old = before.section("figures").number(metric)
    shown = numbers.fixed(value, 2 if metric == "perplexity" else 3)
    ratio = numbers.relative(value, old if old is not None else before.number(metric))
    if is_base or ratio is None:
        return safe(shown)
    mood = numbers.mood(row.number("drop")) if "drop" in row else numbers.mood(ratio)
    return join([shown, tag("span", numbers.signed_percent(ratio), class_=f"change {mood or ''}".strip())])


def _change(value: float | None, before: float | None) -> Html:
    ratio = numbers.relative(value, before)
    if ratio is None:
        return Html("")
    return tag("span", numbers.signed_percent(ratio), class_=f"change {numbers.mood(ratio) or ''}".strip())


def _latency(run: Run) -> Html:
    compress = run.results.section("compress")
    bars = []
    for row in compress.sections("rows"):
        form, times = row.text("form"), row.section("token_ms")
        median = times.number("median")
        if form is None or median is None or median < 0:
            continue
        low, high = times.number("p10"), times.number("p90")
        shown = form if len(form) <= MAX_FORM_CHARACTERS else form[: MAX_FORM_CHARACTERS - 1] + "…"
        bars.append(
            Bar(
                shown,
                median,
                median if low is None else min(max(low, 0.0), median),
                median if high is None else max(high, median),
                chosen=form == compress.text("chosen"),
            )
        )
    if not bars:
        return Html("")
    caption = both(
        "Time to generate one token: the bar is the median, the line spans p10 to p90. Shorter is better.",
        "生成一个词元的时间：条形为中位数，线段为 p10 到 p90。越短越好。",
    )
    return join([heading("Latency", "延迟"), figure("latency", latency_chart(bars), caption)])


def export(run: Run) -> Part | None:
    """Return what was exported and the checks of it against the original model."""
    section = run.results.section("export")
    size, opset = section.number("bytes"), section.number("opset")
    shown = facts(
        [
            (both("Format", "格式"), section.text("format")),
            (both("Opset", "算子集"), None if opset is None else numbers.count(opset)),
            (both("Size", "大小"), None if size is None else numbers.size(size)),
            (both("Checked in", "检查环境"), section.text("runtime")),
        ]
    )
    checks = section.sections("checks")
    head = [
        both("Input (batch × time)", "输入（批 × 时间）"),
        both("Largest difference", "最大差异"),
        both("Top-1 agreement", "首选一致率"),
    ]
    rows = [
        Row(
            [
                _shape(check.get("shape")),
                numbers.scientific(check.number("max_abs_error")),
                numbers.percent(check.number("top1_agreement")),
            ]
        )
        for check in checks
    ]
    if not shown and not rows:
        return None
    name = both("Outputs of the export against the original’s", "导出模型与原模型的输出对比")
    body = join([shown, table(name, head, rows, "checks") if rows else ""])
    return Part("export", both("Export", "导出"), body)


def _shape(value: object) -> str:
    return " × ".join(str(size) for size in value) if isinstance(value, list) and value else numbers.DASH


def serving(run: Run) -> Part | None:
    """Return the first question put to the server, its answer and its timing."""
    section = run.results.section("serve")
    first, speed = section.number("first_token_ms"), section.number("tokens_per_second")
    timing = facts(
        [
            (both("First token after", "首词元用时"), None if first is None else numbers.milliseconds(first)),
            (
                both("Speed", "速度"),
                None if speed is None else join([numbers.short(speed), " ", both("tokens/s", "词元/秒")]),
            ),
        ]
    )
    question, answer = section.text("question"), section.text("answer")
    talk = [
        tag("p", tag("b", both("Asked", "提问")), tag("span", question, dir="auto"), class_="turn") if question else "",
        tag("p", tag("b", both("Answered", "回答")), tag("span", answer, dir="auto"), class_="turn answer")
        if answer
        else "",
    ]
    body = join([*talk, timing])
    return Part("serving", both("Serving", "服务"), body) if body else None
