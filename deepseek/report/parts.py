"""The few shapes the page is made of: a part with its heading, facts, a table, a figure, a card.

Not here: what goes into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepseek.report.html import Html, both, join, tag


@dataclass(frozen=True)
class Part:
    """One part of the page: `anchor` is its address, `body` what follows the heading."""

    anchor: str
    title: Html
    body: Html

    def render(self) -> Html:
        """Return the part as a section."""
        return tag("section", tag("h2", self.title), self.body, id=self.anchor)


@dataclass(frozen=True)
class Card:
    """A key number: `value` large, `label` above it, `note` below; `mood` is "good", "warn" or None."""

    label: Html
    value: object
    note: object = ""
    mood: str | None = None

    def render(self) -> Html:
        """Return the card as a list item."""
        note = tag("span", self.note, class_=f"note {self.mood or ''}".strip()) if self.note else ""
        label, value = tag("span", self.label, class_="label"), tag("span", self.value, class_="value")
        return tag("li", label, value, note)


def intro(english: str, chinese: str) -> Html:
    """Return the sentence below a heading that says how to read what follows."""
    return tag("p", both(english, chinese), class_="intro")


def heading(english: str, chinese: str) -> Html:
    """Return a smaller heading inside a part."""
    return tag("h3", both(english, chinese))


def facts(rows: Iterable[tuple[object, object]]) -> Html:
    """Return names and values, those with long text last and on lines of their own.

    A value of None is left out, and the whole list where nothing is left.
    """
    short: list[Html] = []
    long: list[Html] = []
    for name, value in rows:
        pair = [tag("dt", name), tag("dd", value)]
        if value is not None and not isinstance(value, Html) and len(str(value)) > 22:
            long.append(tag("div", *pair, class_="long"))
        elif value is not None:
            short.append(tag("div", *pair))
    return tag("dl", *short, *long, class_="facts") if short or long else Html("")


@dataclass(frozen=True)
class Row:
    """A row of a table: the first cell names it; `marked` rows stand out."""

    cells: Sequence[object]
    marked: bool = False


def table(name: Html, head: Sequence[object], rows: Sequence[Row], anchor: str) -> Html:
    """Return a table that scrolls sideways inside its box where it doesn't fit; its first column is its row's name."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag(
            "tr",
            tag("th", row.cells[0], scope="row"),
            *(tag("td", cell) for cell in row.cells[1:]),
            class_="marked" if row.marked else None,
        )
        for row in rows
    ]
    caption = tag("caption", name, id=f"{anchor}-caption")
    whole = tag("table", caption, tag("thead", header), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_labelledby=f"{anchor}-caption")


def figure(name: str, chart: Html, caption: Html, legend: Iterable[tuple[str, Html]] = ()) -> Html:
    """Return a chart with its legend above and its caption below. `legend` pairs a role's name with its words."""
    keys = [tag("li", tag("i", class_=f"key {role}"), words) for role, words in legend]
    return tag(
        "figure",
        tag("ul", *keys, class_="legend") if keys else "",
        chart,
        tag("figcaption", caption, id=f"{name}-caption"),
    )


def code(text: object, *, kind: str) -> Html:
    """Return a block of code with a button that copies it (shown only where scripts run).

    `kind` is "command", whose long lines wrap, or "file", which scrolls sideways.
    """
    button = tag("button", both("Copy", "复制"), type="button", class_="copy", hidden=True)
    return tag("div", tag("pre", tag("code", text), tabindex="0"), button, class_=f"code {kind}")


def joined(parts: Iterable[object]) -> Html:
    """Return those of the parts that say something, with a middle dot between them."""
    return join([part for part in parts if part], " · ")
