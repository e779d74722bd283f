"""What the rules did, in numbers: counts, reasons, a few examples, and histograms before and after.

A tally is bounded whatever the input's size, adds up from parts, and is plain values in the run's state file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

LENGTH_BINS = 24
SCORE_BINS = 20
_CLIP = 240
_REASONS = 50


@dataclass
class RuleTally:
    """One rule: documents that came in and that it changed, dropped, split or joined, with reasons and examples."""

    seen: int = 0
    changed: int = 0
    dropped: int = 0
    split: int = 0
    merged: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def note(self, reason: str, example: dict[str, Any], most: int) -> None:
        """Count a reason and keep the example while there are fewer than `most`."""
        if reason in self.reasons or len(self.reasons) < _REASONS:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.examples) < most:
            self.examples.append(example)


@dataclass
class Shape:
    """Histograms of documents: characters (bin i from 2**i on), quality score (20 bins from 0 to 1), and languages."""

    length: list[int] = field(default_factory=lambda: [0] * LENGTH_BINS)
    score: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    languages: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    characters: int = 0

    def add(self, characters: int, score: float, language: str) -> None:
        """Count one document."""
        self.length[min(LENGTH_BINS - 1, int(math.log2(max(1, characters))))] += 1
        self.score[min(SCORE_BINS - 1, int(score * SCORE_BINS))] += 1
        self.languages[language] = self.languages.get(language, 0) + 1
        self.documents += 1
        self.characters += characters


@dataclass
class Tally:
    """All rules in order, what was read, and the documents before and after."""

    rules: dict[str, RuleTally] = field(default_factory=dict)
    before: Shape = field(default_factory=Shape)
    after: Shape = field(default_factory=Shape)
    lines: int = 0
    empty: int = 0
    skipped: int = 0
    skip_reasons: dict[str, int] = field(default_factory=dict)
    skip_examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> Tally:
        """Return a tally of nothing for these rules."""
        return cls(rules={name: RuleTally() for name in names})

    def add(self, part: Tally, most: int) -> None:
        """Add a later part; examples stay at `most` for each rule."""
        for name, rule in part.rules.items():
            mine = self.rules[name]
            for counter in ("seen", "changed", "dropped", "split", "merged"):
                setattr(mine, counter, getattr(mine, counter) + getattr(rule, counter))
            mine.reasons = _sum(mine.reasons, rule.reasons)
            mine.examples += rule.examples[: most - len(mine.examples)]
        for shape, other in ((self.before, part.before), (self.after, part.after)):
            shape.length = [a + b for a, b in zip(shape.length, other.length, strict=True)]
            shape.score = [a + b for a, b in zip(shape.score, other.score, strict=True)]
            shape.languages = _sum(shape.languages, other.languages)
            shape.documents += other.documents
            shape.characters += other.characters
        for counter in ("lines", "empty", "skipped"):
            setattr(self, counter, getattr(self, counter) + getattr(part, counter))
        self.skip_reasons = _sum(self.skip_reasons, part.skip_reasons)
        self.skip_examples += part.skip_examples[: 5 - len(self.skip_examples)]

    def skip(self, where: str, reason: str, detail: str) -> None:
        """Count a line that can't be read."""
        self.skipped += 1
        self.skip_reasons[reason] = self.skip_reasons.get(reason, 0) + 1
        if len(self.skip_examples) < 5:
            self.skip_examples.append(f"{where}: {reason}" + (f": {detail}" if detail else ""))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        """Return the tally of `to_dict`."""
        rules = {name: RuleTally(**rule) for name, rule in values["rules"].items()}
        return cls(**{**values, "rules": rules, "before": Shape(**values["before"]), "after": Shape(**values["after"])})


def example(source: str, reason: str, value: float | str, before: str, after: str | None = None) -> dict[str, Any]:
    """Return an example: the text clipped, and from where it was changed on if it was changed."""
    start = 0
    if after is not None:
        limit = min(len(before), len(after))
        start = next((place for place in range(limit) if before[place] != after[place]), limit)
        start = max(0, start - 40)
    shown: dict[str, Any] = {"source": source, "reason": reason, "value": value, "before": _clip(before, start)}
    return shown if after is None else {**shown, "after": _clip(after, start)}


def _clip(text: str, start: int) -> str:
    clipped = text[start : start + _CLIP]
    clipped = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in clipped)
    return ("…" if start else "") + clipped + ("…" if len(text) > start + _CLIP else "")


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    total = Counter(one)
    total.update(other)
    return dict(list(total.items())[:_REASONS])
