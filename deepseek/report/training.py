"""What training did: loss, throughput, samples, and the facts about data, model and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from deepseek.report import numbers
from deepseek.report.charts import loss_chart, throughput_chart
from deepseek.report.curves import Curve
from deepseek.report.html import Html, both, join, tag
from deepseek.report.parts import Part, facts, figure, heading, intro
from deepseek.report.run_folder import Run, Section

MAX_SAMPLES = 12
MAX_SAMPLE_CHARACTERS = 4000
MAX_CLASSES = 20


def curve(lines: Sequence[Section], x: str, y: str) -> Curve:
    """Return the points of those metrics lines that have both numbers, finite and not absurd."""
    pairs = [(line.number(x), line.number(y)) for line in lines]
    points = [(a, b) for a, b in pairs if a is not None and b is not None and max(abs(a), abs(b)) < 1e15]
    return Curve([point[0] for point in points], [point[1] for point in points])


def training(run: Run) -> Part | None:
    """Return the loss and throughput charts with the facts of the training run."""
    body = join([_loss(run), _train_facts(run.results.section("train")), _throughput(run)])
    return Part("training", both("Training", "训练"), body) if body else None


def _loss(run: Run) -> Html:
    train, validation = curve(run.train, "step", "loss"), curve(run.validation, "step", "val_loss")
    if not train and not validation:
        return Html("")
    evaluate = run.results.section("evaluate")
    unigram, bigram = evaluate.number("unigram_loss"), evaluate.number("bigram_loss")
    rate, per_token = curve(run.train, "step", "lr"), not of_samples(run)
    chart = loss_chart(train, validation, rate, unigram=unigram, bigram=bigram, per_token=per_token)
    legend: list[tuple[str, Html]] = []
    if train:
        legend += [("train", both("training, smoothed", "训练（平滑）")), ("raw", both("each step", "每步"))]
    if validation:
        legend.append(("validation", both("validation", "验证")))
    if unigram is not None:
        legend.append(("unigram", both("unigram model", "单词元模型")))
    if bigram is not None:
        legend.append(("bigram", both("bigram model", "双词元模型")))
    caption = both(
        "Loss over training steps; lower is better. The dashed lines are models that only count tokens or pairs.",
        "损失随训练步的变化，越低越好。虚线是仅统计词元或词元对频次的模型。",
    )
    if unigram is None and bigram is None:
        caption = both("Loss over training steps; lower is better.", "损失随训练步的变化，越低越好。")
    return figure("loss", chart, caption, legend)


def of_samples(run: Run) -> bool:
    """Return whether the run learned from samples, not from packed text."""
    return run.results.section("data").number("train_samples") is not None


def _throughput(run: Run) -> Html:
    name = "items_per_second" if any("items_per_second" in line for line in run.train) else "tokens_per_second"
    over_time, by_step = curve(run.train, "seconds", name), curve(run.train, "step", name)
    if not by_step:
        return Html("")
    in_order = len(over_time.x) == len(by_step.x) and all(a < b for a, b in pairwise(over_time.x))
    chart = throughput_chart(over_time if in_order else by_step, over_time=in_order, tokens=not of_samples(run))
    caption = both("Training speed while the run went on.", "运行过程中的训练速度。")
    return join([heading("Throughput", "吞吐量"), figure("throughput", chart, caption)])


def _train_facts(train: Section) -> Html:
    compiled = train.get("compiled")
    return facts(
        [
            (both("Steps", "步数"), _known(numbers.count, train.number("steps"))),
            (both("Tokens", "词元"), _known(numbers.count, train.number("tokens"))),
            (both("Targets", "目标"), _known(numbers.count, train.number("items"))),
            (both("Time", "用时"), _known(numbers.duration, train.number("seconds"))),
            (both("Final training loss", "最终训练损失"), _known(numbers.fixed, train.number("train_loss"))),
            (both("Device", "设备"), train.text("device")),
            (both("Precision", "精度"), train.text("precision")),
            (both("Compiled", "编译"), plain(compiled) if isinstance(compiled, bool) else None),
            (both("Why", "原因"), train.text("compile_reason")),
        ]
    )


def samples(run: Run) -> Part | None:
    """Return what the model writes: each prompt with its continuation."""
    items = [item for item in run.results.sections("samples") if item.text("text") or item.text("prompt")]
    if not items:
        return None
    shown = [_sample(item) for item in items[:MAX_SAMPLES]]
    words = intro("The prompt is marked; the rest is the model’s own.", "标出的是提示，其余由模型写出。")
    return Part("samples", both("Samples", "样例"), join([words, *shown]))


def _sample(item: Section) -> Html:
    prompt, text = item.text("prompt") or "", item.text("text") or ""
    text = text.removeprefix(prompt)
    prompt, text = _cut(prompt), _cut(text)
    return tag("blockquote", tag("mark", prompt) if prompt else "", text, class_="sample", dir="auto")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else text[:MAX_SAMPLE_CHARACTERS] + " …"


def data(run: Run) -> Part | None:
    """Return the facts about the data."""
    section = run.results.section("data")
    body = facts(
        [
            (both("Source", "来源"), section.text("source")),
            (both("Training samples", "训练样本"), _known(numbers.count, section.number("train_samples"))),
            (both("Validation samples", "验证样本"), _known(numbers.count, section.number("val_samples"))),
            (both("Classes", "类别"), _classes(section)),
            (both("Held back by", "留出方式"), _split(section.section("split"))),
            (both("Documents", "文档"), _known(numbers.count, section.number("documents"))),
            (both("Skipped", "跳过"), _known(numbers.count, section.number("skipped"))),
            (both("Characters", "字符"), _known(numbers.count, section.number("characters"))),
            (both("Training tokens", "训练词元"), _known(numbers.count, section.number("train_tokens"))),
            (both("Validation tokens", "验证词元"), _known(numbers.count, section.number("val_tokens"))),
            (both("Vocabulary", "词表"), _known(numbers.count, section.number("vocab_size"))),
            (both("Time", "用时"), _known(numbers.duration, section.number("seconds"))),
        ]
    )
    return Part("data", both("Data", "数据"), body) if body else None


def _classes(section: Section) -> str | None:
    names = section.get("classes")
    if not isinstance(names, list) or not names:
        return None
    return ", ".join(str(name) for name in names[:MAX_CLASSES]) + (", …" if len(names) > MAX_CLASSES else "")


def _split(split: Section) -> str | None:
    """Return how the validation part was chosen."""
    by, held_out = split.text("by"), split.get("held_out")
    if by is None:
        return None
    groups = (
        f": {', '.join(str(one) for one in held_out[:MAX_CLASSES])}" if isinstance(held_out, list) and held_out else ""
    )
    seed = split.number("seed")
    return f"{by}{groups}" + ("" if seed is None else f" (seed {seed:.0f})")


def model(run: Run) -> Part | None:
    """Return the facts about the model: its size and every setting of its config."""
    section = run.results.section("model")
    config = [(tag("code", key), plain(value)) for key, value in section.section("config").items()]
    parameters = _known(numbers.count, section.number("parameters"))
    body = facts([(both("Template", "模板"), section.text("name")), (both("Parameters", "参数"), parameters), *config])
    return Part("model", both("Model", "模型"), body) if body else None


def plain(value: object) -> Html | str:
    """Return a value of JSON as a reader wants it; lists joined by commas."""
    if isinstance(value, bool):
        return both("yes", "是") if value else both("no", "否")
    if value is None:
        return numbers.DASH
    if isinstance(value, list):
        shown = [plain(item) for item in value]
        return (", ".join(shown) if all(type(item) is str for item in shown) else join(shown, ", ")) or numbers.DASH
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _known(show: Callable[[float | None], str], value: float | None) -> str | None:
    return None if value is None else show(value)
