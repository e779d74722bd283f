"""The rules that compare documents, on one block in the input's order: domain by BERTScore, duplicates, window.

What comes out are lines of the output and entries of the undo log. Not here: rules on one document (`block`), files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from deepseek.data.cooker.block import Cooked, CookedBlock, Step, record_verdict
from deepseek.data.cooker.draft import Change, Draft, Drop, to_json, with_texts
from deepseek.data.cooker.rules.window import Unit, Window
from deepseek.data.cooker.tally import Tally, example
from deepseek.data.cooker.undo import Undone, entry


class BlockRule(Protocol):
    """A rule that looks at the documents of a block together, and may remember earlier blocks."""

    @property
    def name(self) -> str: ...

    def apply(self, drafts: Sequence[Draft]) -> Sequence[Change | Drop | None]:
        """Return what becomes of each document."""
        ...


@dataclass
class Finisher:
    """The block rules in order and, if it is switched on, the window."""

    rules: Sequence[BlockRule]
    window: Window | None
    examples: int
    undo_text: bool
    lines: int = 0
    """Lines of the output so far."""

    def names(self) -> list[str]:
        """Return the rules' names in order."""
        return [rule.name for rule in self.rules] + ([self.window.name] if self.window else [])

    def finish(self, block: CookedBlock, tally: Tally) -> tuple[list[str], list[str]]:
        """Return the block's lines for the output and for the undo log; its counts are added to `tally`."""
        tally.add(block.tally, self.examples)
        for rule in self.rules:
            left = [cooked for cooked in block.documents if not cooked.dropped]
            tally.rules[rule.name].seen += len(left)
            for cooked, verdict in zip(left, rule.apply([cooked.draft for cooked in left]), strict=True):
                record_verdict(cooked, rule.name, verdict, tally, self.examples)
        output: list[str] = []
        log: list[str] = []
        for members, unit in self._units(block.documents, tally):
            lines = [to_json(with_texts(unit.drafts[0].record, texts)) for texts in unit.texts] if unit else []
            if any(member.steps for member in members):
                undone = [Undone(member.draft.source, member.draft.record, member.steps) for member in members]
                log.append(to_json(entry(self.lines, len(lines), undone, self.undo_text)))
            for texts in unit.texts if unit else ():
                tally.after.add(sum(map(len, texts)), members[0].score, members[0].draft.language)
            self.lines += len(lines)
            output += lines
        return output, log

    def _units(self, documents: Sequence[Cooked], tally: Tally) -> Iterator[tuple[list[Cooked], Unit | None]]:
        """Yield, in the input's order, documents that go on together with what comes of them, and dropped ones alone.

        A document that was dropped between two that were joined is yielded with these.
        """
        left = [cooked for cooked in documents if not cooked.dropped]
        units = self.window.apply([cooked.draft for cooked in left]) if self.window else _single(left)
        kept, place = iter(left), 0
        for unit in units:
            members = [next(kept) for _ in unit.drafts]
            if self.window:
                self._note(members, unit, tally)
            while documents[place] is not members[0]:
                yield [documents[place]], None
                place += 1
            start = place
            while documents[place] is not members[-1]:
                place += 1
            place += 1
            yield list(documents[start:place]), unit
        for cooked in documents[place:]:
            yield [cooked], None

    def _note(self, members: list[Cooked], unit: Unit, tally: Tally) -> None:
        counts = tally.rules["window"]
        counts.seen += len(members)
        if not unit.action:
            return
        if unit.action == "drop":
            counts.dropped += 1
        elif unit.action == "split":
            counts.split += 1
        else:
            counts.merged += len(members)
        first = members[0].draft
        after = "\n———\n".join(texts[0] for texts in unit.texts) if unit.texts else None
        counts.note(unit.reason, example(first.source, unit.reason, unit.value, first.text, after), self.examples)
        for member in members:
            member.steps.append(Step("window", unit.action, unit.reason, unit.value, member.draft.texts))


def _single(left: Sequence[Cooked]) -> list[Unit]:
    return [Unit([cooked.draft], [cooked.draft.texts]) for cooked in left]
