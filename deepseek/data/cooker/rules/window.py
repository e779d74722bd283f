"""Rule `window`: documents brought to 512 +- 64 tokens: long ones split at sentence ends, short neighbours joined.

A text is cut after the sentence that brings a piece nearest to the target; a sentence longer than the window is cut
after a word. Chats are neither split nor joined. It is the last rule, and works on the documents of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deepseek.data.cooker.config import WindowConfig
from deepseek.data.cooker.draft import Draft
from deepseek.data.cooker.length import TokenCounter
from deepseek.data.cooker.sentence_split import sentences

_BETWEEN = "\n\n"


@dataclass
class Unit:
    """Documents that go on together: one or, where short ones were joined, several; and the texts that come of them."""

    drafts: list[Draft]
    texts: list[tuple[str, ...]]
    action: str = ""
    reason: str = ""
    value: float = 0


@dataclass(frozen=True)
class Window:
    """Splits, joins and drops by length."""

    config: WindowConfig
    count: TokenCounter
    name: str = field(default="window", init=False)

    def apply(self, drafts: Sequence[Draft]) -> list[Unit]:
        """Return the block's documents as units, in order."""
        low, high = self.config.target - self.config.tolerance, self.config.target + self.config.tolerance
        units: list[Unit] = []
        open_unit: Unit | None = None
        for draft, length in zip(drafts, self.count([draft.text for draft in drafts]), strict=True):
            if length > high and self.config.long != "keep":
                unit, open_unit = self._long(draft, length), None
            elif length >= low or draft.is_chat or self.config.short != "merge":
                unit, open_unit = self._short(draft, length, low), None
            elif open_unit is not None and open_unit.value + length <= high and _alike(open_unit.drafts[-1], draft):
                open_unit.drafts.append(draft)
                open_unit.value += length
                if open_unit.value >= self.config.target:
                    open_unit = None
                continue
            else:
                unit = open_unit = Unit([draft], [draft.texts], value=length)
            units.append(unit)
        return [_joined(unit) for unit in units]

    def _short(self, draft: Draft, length: int, low: int) -> Unit:
        if length < low and self.config.short == "drop":
            return Unit([draft], [], "drop", "shorter than the window", length)
        return Unit([draft], [draft.texts], value=length)

    def _long(self, draft: Draft, length: int) -> Unit:
        if self.config.long == "drop":
            return Unit([draft], [], "drop", "longer than the window", length)
        if draft.is_chat:
            return Unit([draft], [draft.texts], value=length)
        pieces = split(draft.text, self.config, self.count)
        if len(pieces) < 2:
            return Unit([draft], [draft.texts], value=length)
        return Unit([draft], [(piece,) for piece in pieces], "split", "longer than the window", length)


def split(text: str, config: WindowConfig, count: TokenCounter) -> list[str]:
    """Return pieces of `text` of about `config.target` tokens, none above the window; space between is lost."""
    high = config.target + config.tolerance
    parts = sentences(text)
    lengths = count(parts)
    pieces, held, size = [], "", 0
    for part, length in _cut_long(parts, lengths, config, count):
        too_long = size + length > high
        further_off = abs(size + length - config.target) > abs(size - config.target)
        if held and (too_long or (size >= config.target - config.tolerance and further_off)):
            pieces.append(held)
            held, size = "", 0
        held, size = held + part, size + length
    return [piece.strip() for piece in [*pieces, held] if piece.strip()]


def _cut_long(parts: list[str], lengths: list[int], config: WindowConfig, count: TokenCounter) -> list[tuple[str, int]]:
    """Return the parts with those longer than the window cut into even pieces, after a space where there is one."""
    out: list[tuple[str, int]] = []
    for part, length in zip(parts, lengths, strict=True):
        if length <= config.target + config.tolerance:
            out.append((part, length))
            continue
        step = max(1, len(part) * config.target // length)
        small, start = [], 0
        while start < len(part):
            space = part.rfind(" ", start + step // 2, start + step) + 1
            end = space if space and start + step < len(part) else start + step
            small.append(part[start:end])
            start = end
        out += zip(small, count(small), strict=True)
    return out


def _alike(one: Draft, other: Draft) -> bool:
    """Return whether two documents may be one: the same file, and the same keys beside their text."""
    if one.path != other.path or other.is_chat:
        return False
    return {**one.record, "text": ""} == {**other.record, "text": ""}


def _joined(unit: Unit) -> Unit:
    if len(unit.drafts) < 2:
        return unit
    text = _BETWEEN.join(draft.text for draft in unit.drafts)
    return Unit(unit.drafts, [(text,)], "merge", "shorter than the window", len(unit.drafts))
