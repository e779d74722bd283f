"""What a task measured on the data held back: its figures beside their baselines, who was taken for whom, some answers.

For language models see `training.samples`. Pictures are files of the run folder, put into the page.
"""

from __future__ import annotations

import base64
from pathlib import Path

from deepseek.report import numbers
from deepseek.report.html import Html, both, join, tag
from deepseek.report.parts import Part, Row, heading, intro, table
from deepseek.report.run_folder import Run, Section, finite

MAX_EXAMPLES = 24
MAX_CLASSES = 40
MAX_PICTURE_BYTES = 1_000_000
MAX_TEXT = 400

NAMES = {
    "accuracy": "准确率",
    "calibration_error": "校准误差",
    "cer": "字符错误率",
    "dice": "Dice 系数",
    "f1": "F1",
    "iou": "交并比",
    "loss": "损失",
    "mae": "平均绝对误差",
    "macro_f1": "宏平均 F1",
    "map": "mAP@0.5:0.95",
    "map50": "mAP@0.5",
    "perplexity": "困惑度",
    "r2": "R²",
    "recall": "召回率",
    "rmse": "均方根误差",
    "roc_auc": "ROC 曲线下面积",
    "top5_accuracy": "前五准确率",
    "wer": "词错误率",
}
"""The figures that have a name in Chinese; others keep theirs."""


def named(name: str) -> Html:
    """Return a figure's name in both languages."""
    return both(name.replace("_", " "), NAMES.get(name, name))


def figures(run: Run) -> list[tuple[str, float]]:
    """Return the figures of the evaluation in their order, those that are finite."""
    found = run.results.section("evaluate").section("figures")
    pairs = ((name, finite(value)) for name, value in found.items())
    return [(name, value) for name, value in pairs if value is not None]


def evaluation(run: Run) -> Part | None:
    """Return the table of figures and the confusion matrix."""
    evaluate = run.results.section("evaluate")
    found, baselines = figures(run), evaluate.section("baselines")
    if not found:
        return None
    count = numbers.count(evaluate.number("samples"))
    words = intro(
        f"Measured on {count} samples that training did not see. “Without a model”: always the commonest answer.",
        f"在训练未见过的 {count} 个样本上测得。“无模型”指总是给出最常见的答案。",
    )
    head = [both("Figure", "指标"), both("Model", "模型"), both("Without a model", "无模型")]
    rows = [Row([named(name), numbers.fixed(value), _baseline(baselines.number(name))]) for name, value in found]
    shown = table(both("Figures on the data held back", "留出数据上的指标"), head, rows, "figures")
    return Part("evaluation", both("Evaluation", "评估"), join([words, shown, _confusion(run)]))


def _baseline(value: float | None) -> str:
    return numbers.DASH if value is None else numbers.fixed(value)


def _confusion(run: Run) -> Html:
    examples = run.results.section("examples")
    counts, classes = examples.get("confusion"), examples.get("classes")
    if not isinstance(counts, list) or not isinstance(classes, list) or not 2 <= len(classes) <= MAX_CLASSES:
        return Html("")
    rows = [[finite(cell) or 0.0 for cell in row] for row in counts if isinstance(row, list)]
    if len(rows) != len(classes) or any(len(row) != len(classes) for row in rows):
        return Html("")
    body = []
    for place, row in enumerate(rows):
        total = sum(row) or 1.0
        cells = [_cell(value, value / total, place == column) for column, value in enumerate(row)]
        body.append(Row([str(classes[place]), *cells]))
    title = both("Rows: the right class; columns: the model’s", "行：正确类别；列：模型的判断")
    head = [both("Class", "类别"), *(str(name) for name in classes)]
    return join([heading("Confusion matrix", "混淆矩阵"), table(title, head, body, "confusion")])


def _cell(value: float, share: float, right: bool) -> Html:
    """Return a number whose ground is the darker the larger its share of the row."""
    role = "train" if right else "validation"
    style = f"background: color-mix(in srgb, var(--chart-{role}) {share * 60:.0f}%, transparent)"
    return tag("span", f"{value:,.0f}", class_="heat", style=style)


def examples(run: Run) -> Part | None:
    """Return some samples with what is right and what the model says."""
    rows = run.results.section("examples").sections("rows")[:MAX_EXAMPLES]
    shown = [one for one in (_example(run, row) for row in rows) if one]
    if not shown:
        return None
    words = intro(
        "Samples held back, some of the model’s mistakes first: what is right, then what the model says.",
        "留出的样本（部分误判在前）：先是正确答案，后是模型的判断。",
    )
    return Part("examples", both("Examples", "样例"), join([words, tag("ul", *shown, class_="gallery")]))


def _example(run: Run, row: Section) -> Html:
    wanted, found, text = row.text("wanted") or "", row.text("found") or "", row.text("text") or ""
    parts: list[object] = [_picture(run, row.text("picture"), found or wanted)]
    if text:
        parts.append(tag("span", text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …", class_="what", dir="auto"))
    if wanted:
        parts.append(tag("span", wanted, class_="wanted", dir="auto"))
    if found:
        parts.append(tag("span", found, class_="found", dir="auto"))
    return tag("li", *parts) if any(parts) else Html("")


def _picture(run: Run, name: str | None, words: str) -> Html:
    """Return a PNG file below the run's `examples` folder, put into the page; nothing for any other file."""
    if name is None or Path(name).parent != Path("examples") or not name.endswith(".png"):
        return Html("")
    try:
        data = (run.folder / name).read_bytes()
    except OSError:
        return Html("")
    if not data.startswith(b"\x89PNG") or len(data) > MAX_PICTURE_BYTES:
        return Html("")
    return tag("img", src=f"data:image/png;base64,{base64.b64encode(data).decode()}", alt=words)
