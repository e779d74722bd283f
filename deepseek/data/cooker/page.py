"""The HTML page of a run: one file, nothing loaded from anywhere, no script; all text from documents is escaped.

Not here: the numbers (`tally`) and the charts' drawing (`charts`).
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from deepseek.data.cooker.charts import funnel, histogram
from deepseek.data.cooker.result import CookReport
from deepseek.data.cooker.tally import LENGTH_BINS, SCORE_BINS, RuleTally

_NAMES = {
    "encoding": ("Encoding repair", "编码修复"),
    "language": ("Language", "语种"),
    "quality": ("Quality", "质量"),
    "boilerplate": ("Boilerplate", "模板行"),
    "personal_data": ("Personal data", "个人信息"),
    "sensitive": ("Sensitive words", "敏感词"),
    "contamination": ("Evaluation overlap", "评测集污染"),
    "domain": ("Domain fit", "领域契合"),
    "duplicates": ("Duplicates", "去重"),
    "window": ("Length window", "长度窗口"),
}
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def render(report: CookReport) -> str:
    """Return the page."""
    body = [
        f"<h1>{_text(report.output)}</h1>",
        f'<p class="muted">Cooked from {_text(report.input)} in {report.seconds:.1f} s · 数据清洗报告</p>',
        _cards(report),
        _rules(report),
        _shapes(report),
        _examples(report),
        _duplicates(report),
        _skipped(report),
        _settings(report),
    ]
    style = files("deepseek.data.cooker").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_text(report.output)} · cook report</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _text(value: object) -> str:
    """Return a value as escaped text; what HTML can't hold becomes visible."""
    text = str(value).translate(_CONTROL)
    return escape("".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text))


def _heading(english: str, chinese: str) -> str:
    return f"<h2>{english}<small>{chinese}</small></h2>"


def _cards(report: CookReport) -> str:
    before, after = report.tally.before, report.tally.after
    kept = report.documents_out / report.documents_in if report.documents_in else 0.0
    share = after.characters / before.characters if before.characters else 0.0
    cards = [
        (f"{report.documents_in:,}", "documents in · 输入文档"),
        (f"{report.documents_out:,}", f"documents out ({kept:.1%}) · 输出文档"),
        (f"{before.characters:,}", "characters in · 输入字符"),
        (f"{after.characters:,}", f"characters out ({share:.1%}) · 输出字符"),
    ]
    return f'<ul class="cards">{"".join(f"<li><b>{value}</b><span>{label}</span></li>" for value, label in cards)}</ul>'


def _rules(report: CookReport) -> str:
    rows, left, steps = [], report.documents_in, [("in", report.documents_in)]
    for name, rule in report.tally.rules.items():
        english, chinese = _NAMES.get(name, (name, ""))
        left -= rule.dropped
        steps.append((english, left))
        cells = [rule.seen, rule.changed, rule.dropped, rule.split, rule.merged]
        share = rule.dropped / rule.seen if rule.seen else 0.0
        rows.append(
            f'<tr><th scope="row">{english}<small>{chinese}</small></th>'
            + "".join(f"<td>{cell:,}</td>" if cell else '<td class="muted">–</td>' for cell in cells)
            + f"<td>{share:.2%}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("rule", "seen", "changed", "dropped", "split", "joined", "dropped %")
    )
    return (
        f"<section>{_heading('What each rule did', '各规则的作用')}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<h3>Documents left<small>剩余文档</small></h3><div class="chart-wide">{funnel(steps)}</div>'
        '<p class="muted">Counted before the window splits and joins documents.</p></section>'
    )


def _shapes(report: CookReport) -> str:
    before, after = report.tally.before, report.tally.after
    used = [place for place in range(LENGTH_BINS) if before.length[place] or after.length[place]] or [0]
    low, high = used[0], used[-1] + 1
    lengths = histogram(
        "length", [_short(2**place) for place in range(low, high)], before.length[low:high], after.length[low:high]
    )
    scores = histogram(
        "quality", [f"{place / SCORE_BINS:.2f}" for place in range(SCORE_BINS)], before.score, after.score
    )
    names = sorted(set(before.languages) | set(after.languages), key=lambda name: -before.languages.get(name, 0))[:12]
    languages = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{before.languages.get(name, 0):,}</td>'
        f"<td>{after.languages.get(name, 0):,}</td></tr>"
        for name in names
    )
    return (
        f"<section>{_heading('Before and after', '清洗前后')}"
        '<p class="muted key"><i class="old"></i>before · 之前<i class="new"></i>after · 之后</p>'
        f'<div class="pair"><figure>{lengths}<figcaption>Documents by length in characters; each bin is twice the one '
        "before"
        f"</figcaption></figure><figure>{scores}<figcaption>Documents by quality score: share of letters times share "
        "of text not repeated</figcaption></figure></div>"
        '<h3>Languages<small>语种</small></h3><div class="scroll"><table><thead><tr>'
        '<th scope="col">code</th>'
        '<th scope="col">before</th><th scope="col">after</th></tr></thead>'
        f"<tbody>{languages}</tbody></table></div></section>"
    )


def _short(value: int) -> str:
    return f"{value >> 20}M" if value >= 1 << 20 else f"{value >> 10}k" if value >= 1 << 10 else str(value)


def _examples(report: CookReport) -> str:
    parts = [_rule_examples(name, rule) for name, rule in report.tally.rules.items() if rule.reasons]
    body = "".join(parts) or "<p>Nothing was touched.</p>"
    return f"<section>{_heading('Reasons and examples', '原因与示例')}{body}</section>"


def _rule_examples(name: str, rule: RuleTally) -> str:
    english, chinese = _NAMES.get(name, (name, ""))
    reasons = sorted(rule.reasons.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{_text(reason)} {count:,}" for reason, count in reasons[:12])
    shown = "".join(f"<div>{_example(values)}</div>" for values in rule.examples)
    details = f"<details><summary>{len(rule.examples)} examples · 示例</summary>{shown}</details>" if shown else ""
    return f'<h3>{english}<small>{chinese}</small></h3><p class="muted">{listed}</p>{details}'


def _example(values: dict[str, Any]) -> str:
    head = f'<p class="muted">{_text(values["source"])} · {_text(values["reason"])} · {_text(values["value"])}</p>'
    after = f'<div class="text new" dir="auto">{_text(values["after"])}</div>' if "after" in values else ""
    return f'{head}<div class="text" dir="auto">{_text(values["before"])}</div>{after}'


def _duplicates(report: CookReport) -> str:
    quality = report.duplicates_quality
    if quality is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{row["threshold"]:.2f}{"<small>chosen · 选用</small>" if row["chosen"] else ""}</th>'
        + "".join(f"<td>{row[name]:.1%}</td>" for name in ("precision", "recall", "f1", "left"))
        + "</tr>"
        for row in quality["rows"]
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("threshold", "precision", "recall", "F1", "left over"))
    edits = ", ".join(f"{_text(name)} {share:.0%}" for name, share in quality["recall_by_edit"].items())
    return (
        f"<section>{_heading('How well duplicates are found', '去重质量')}"
        f"<p>{quality['planted']:,} edited copies were planted among {quality['texts']:,} documents of the output, and "
        f'looked for.</p><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="muted">Found at the chosen threshold, by kind of edit: {edits}. Documents of the sample that are '
        f"still alike to another: {quality['duplicates_left']:.2%}.</p></section>"
    )


def _skipped(report: CookReport) -> str:
    tally = report.tally
    if not tally.skipped and not tally.empty:
        return ""
    reasons = "".join(f"<li>{_text(reason)}: {count:,}</li>" for reason, count in tally.skip_reasons.items())
    examples = "".join(f"<li>{_text(line)}</li>" for line in tally.skip_examples)
    return (
        f"<section>{_heading('Lines passed over', '跳过的行')}"
        f"<p>{tally.skipped:,} of {tally.lines:,} lines could not be read; "
        f'{tally.empty:,} documents were empty.</p><ul>{reasons}</ul><ul class="muted">{examples}</ul></section>'
    )


def _settings(report: CookReport) -> str:
    unit = (
        "estimated (1.3 a word, 0.75 a Chinese or Japanese character)"
        if report.length_unit == "estimate"
        else report.length_unit
    )
    values = json.dumps(report.config, indent=2, ensure_ascii=False)
    return (
        f"<section>{_heading('Settings', '设置')}<p>Tokens: {_text(unit)}. Undo log: {_text(report.undo_log)}.</p>"
        f"<details><summary>all settings · 全部设置</summary><pre>{_text(values)}</pre></details></section>"
    )
