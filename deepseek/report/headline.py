"""The top of the page: the run's name, what it did in one sentence, its key numbers, and notes on damaged data."""

from __future__ import annotations

from deepseek.report import numbers
from deepseek.report.html import Html, both, join, tag
from deepseek.report.measured import figures, named
from deepseek.report.parts import Card, joined
from deepseek.report.run_folder import Run, Section

MAX_FIGURES = 4


def header(run: Run) -> Html:
    """Return the page's header."""
    created = run.results.text("created")
    when = tag("time", created.replace("T", " ").removesuffix("Z").removesuffix("+00:00") + " UTC") if created else ""
    eyebrow = tag("p", both("Run report", "运行报告"), " · " if when else "", when, class_="eyebrow")
    cards = key_numbers(run)
    return tag(
        "header",
        eyebrow,
        tag("h1", run.name, dir="auto"),
        _sentence(run),
        _notes(run),
        tag("ul", *(card.render() for card in cards), class_="cards") if cards else "",
    )


def validation_loss(run: Run) -> float | None:
    """Return the final validation loss in nats per token, from the best source that has it."""
    last = run.validation[-1].number("val_loss") if run.validation else None
    for value in (
        run.results.section("evaluate").number("val_loss"),
        run.results.section("train").number("val_loss"),
        last,
    ):
        if value is not None:
            return value
    return None


def compress_rows(run: Run) -> tuple[Section, Section]:
    """Return the compression rows before (fp32, else the first) and after (the chosen one); empty where unknown."""
    compress = run.results.section("compress")
    rows = compress.sections("rows")
    before = next((row for row in rows if row.text("form") == "fp32"), rows[0] if rows else Section())
    chosen = compress.text("chosen")
    after = next((row for row in rows if chosen and row.text("form") == chosen), Section())
    return before, after


def key_numbers(run: Run) -> list[Card]:
    """Return the cards for those key numbers that the run has."""
    measured = _figure_cards(run)
    if measured:
        return [card for card in (*measured, _size_card(run), _time_card(run)) if card is not None]
    cards = (_loss_card(run), _perplexity_card(run), _speed_card(run), _size_card(run), _latency_card(run))
    return [card for card in (*cards, _time_card(run)) if card is not None]


def _figure_cards(run: Run) -> list[Card]:
    """Return the first figures that the task measured, but the loss."""
    baselines = run.results.section("evaluate").section("baselines")
    cards = []
    for name, value in [pair for pair in figures(run) if pair[0] != "loss"][:MAX_FIGURES]:
        base = baselines.number(name)
        note = "" if base is None else both(f"without a model {numbers.fixed(base)}", f"无模型 {numbers.fixed(base)}")
        cards.append(Card(named(name), numbers.fixed(value), note))
    return cards


def _loss_card(run: Run) -> Card | None:
    loss = validation_loss(run)
    if loss is None:
        return None
    label = both("Validation loss", "验证损失")
    bigram = run.results.section("evaluate").number("bigram_loss")
    if bigram is None:
        return Card(label, numbers.fixed(loss), both("nats per token", "nat / 词元"))
    gap = f"{abs(bigram - loss):.2f}"
    if loss < bigram:
        note = both(f"{gap} below the bigram model’s {bigram:.3f}", f"比双词元模型的 {bigram:.3f} 低 {gap}")
    else:
        note = both(f"{gap} above the bigram model’s {bigram:.3f}", f"比双词元模型的 {bigram:.3f} 高 {gap}")
    return Card(label, numbers.fixed(loss), note, "good" if loss < bigram else "warn")


def _perplexity_card(run: Run) -> Card | None:
    evaluate = run.results.section("evaluate")
    perplexity, bits = evaluate.number("perplexity"), evaluate.number("bits_per_byte")
    if perplexity is None:
        return None
    note = "" if bits is None else both(f"{bits:.3f} bits per byte", f"每字节 {bits:.3f} 比特")
    return Card(both("Perplexity", "困惑度"), numbers.fixed(perplexity, 2), note)


def _speed_card(run: Run) -> Card | None:
    train = run.results.section("train")
    speed = train.number("tokens_per_second")
    if speed is None:
        return None
    compiled = both("compiled", "已编译") if train.get("compiled") is True else ""
    note = joined([train.text("device"), train.text("precision"), compiled])
    unit = tag("small", both("tokens/s", "词元/秒"))
    return Card(both("Training speed", "训练速度"), join([numbers.short(speed), " ", unit]), note)


def _size_card(run: Run) -> Card | None:
    before, after = compress_rows(run)
    first, last = before.number("bytes"), after.number("bytes")
    label = both("Size", "大小")
    if last is None or after.get("form") == before.get("form"):
        return None if first is None else Card(label, numbers.size(first), before.text("form") or "")
    return _compared(label, numbers.size(last), numbers.size(first), numbers.relative(last, first), after)


def _latency_card(run: Run) -> Card | None:
    before, after = compress_rows(run)
    first = before.section("token_ms").number("median")
    last = after.section("token_ms").number("median")
    label = both("Time per token", "每词元用时")
    if last is None or after.get("form") == before.get("form"):
        return None if first is None else Card(label, numbers.milliseconds(first), before.text("form") or "")
    shown = numbers.milliseconds(last), numbers.milliseconds(first)
    return _compared(label, *shown, numbers.relative(last, first), after)


def _time_card(run: Run) -> Card | None:
    train, data = run.results.section("train").number("seconds"), run.results.section("data").number("seconds")
    total = run.results.number("seconds")
    if total is None and train is None:
        return None
    note = joined(
        [
            both(f"data {numbers.duration(data)}", f"数据 {numbers.duration(data)}") if data is not None else "",
            both(f"training {numbers.duration(train)}", f"训练 {numbers.duration(train)}") if train is not None else "",
        ]
    )
    if total is None:
        return Card(both("Data and training", "数据与训练"), numbers.duration((train or 0.0) + (data or 0.0)), note)
    return Card(both("Total time", "总用时"), numbers.duration(total), note)


def _compared(label: Html, value: str, before: str, ratio: float | None, after: Section) -> Card:
    """Return a card that shows a value with what it was before: beside it where there is room, else below."""
    beside = tag("small", f"{before} → ", class_="on-wide")
    below = tag("span", both("from ", "原 "), before, " · ", class_="on-narrow")
    changed = tag("span", numbers.signed_percent(ratio), class_=numbers.mood(ratio))
    return Card(label, join([beside, value]), join([below, joined([changed, after.text("form")])]))


def _sentence(run: Run) -> Html:
    train, model = run.results.section("train"), run.results.section("model")
    tokens, seconds, parameters = train.number("tokens"), train.number("seconds"), model.number("parameters")
    samples = run.results.section("data").number("train_samples")
    if (tokens is None and samples is None) or seconds is None or parameters is None:
        return Html("")
    name = model.text("name") or "model"
    size, read, time = numbers.short(parameters), numbers.short(tokens), numbers.duration(seconds)
    english = f"A {name} of {size} parameters, trained on {read} tokens in {time}"
    chinese = f"{size} 参数的 {name}，在 {time} 内训练了 {read} 词元"
    if samples is not None:
        english = f"A {name} of {size} parameters, trained on {numbers.count(samples)} samples in {time}"
        chinese = f"{size} 参数的 {name}，在 {time} 内用 {numbers.count(samples)} 个样本训练"
    source = run.results.section("data").text("source")
    if source:
        return tag("p", both(f"{english}. Data: {source}", f"{chinese}。数据：{source}"), class_="lead")
    return tag("p", both(f"{english}.", f"{chinese}。"), class_="lead")


def _notes(run: Run) -> Html:
    if not run.notes:
        return Html("")
    items = [tag("li", both(note.english, note.chinese)) for note in run.notes]
    return tag("ul", *items, class_="notes", role="note")
