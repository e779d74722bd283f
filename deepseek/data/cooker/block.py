"""One block through the rules that look at one document at a time: pure, so any process may do it.

Not here: rules that compare documents (`finish`), and the order of blocks (`workers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from deepseek.data.cooker.config import CookerConfig
from deepseek.data.cooker.draft import Change, Draft, Drop, parse, renamed, texts_of
from deepseek.data.cooker.hashing import Hashes
from deepseek.data.cooker.line_counts import LineCounts
from deepseek.data.cooker.repetition import repeated_share
from deepseek.data.cooker.rules.boilerplate import Boilerplate, countable_lines
from deepseek.data.cooker.rules.contamination import Contamination
from deepseek.data.cooker.rules.domain import DomainProxy
from deepseek.data.cooker.rules.encoding import Encoding
from deepseek.data.cooker.rules.language import Language
from deepseek.data.cooker.rules.personal_data import PersonalData
from deepseek.data.cooker.rules.quality import Quality, letter_share
from deepseek.data.cooker.rules.sensitive import Sensitive
from deepseek.data.cooker.source import RawLine
from deepseek.data.cooker.tally import Tally, example
from deepseek.data.cooker.word_search import WordSearch
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DataError


class Rule(Protocol):
    """A rule that looks at one document at a time."""

    @property
    def name(self) -> str: ...

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return what becomes of the document; None leaves it as it is."""
        ...


class Step(NamedTuple):
    """What a rule did to a document, and its texts before."""

    rule: str
    action: str
    reason: str
    value: float | str
    before: tuple[str, ...]


@dataclass
class Cooked:
    """A document after the rules of `cook_block`, with what was done to it and its quality score, 0 to 1."""

    draft: Draft
    steps: list[Step] = field(default_factory=list)
    dropped: bool = False
    score: float = 0.0


class CookedBlock(NamedTuple):
    """A block's documents in order, those dropped too, and the counts of these rules."""

    documents: list[Cooked]
    tally: Tally


@dataclass(frozen=True)
class Kitchen:
    """What the rules need besides the settings, prepared once and given to every worker."""

    config: CookerConfig
    counts: LineCounts | None = None
    search: WordSearch | None = None
    grams: dict[int, Hashes] | None = None
    known: Hashes | None = None

    def rules(self) -> list[Rule]:
        """Return the rules that are switched on, in order."""
        config = self.config
        rules: list[Rule | None] = [
            Encoding(config.encoding) if config.encoding.enabled else None,
            Language(config.language) if config.language.enabled else None,
            Quality(config.quality) if config.quality.enabled else None,
            Boilerplate(config.boilerplate, self.counts) if config.boilerplate.enabled else None,
            PersonalData(config.personal_data) if config.personal_data.enabled else None,
            Sensitive(config.sensitive, self.search) if self.search is not None else None,
            Contamination(self.grams) if self.grams is not None else None,
            DomainProxy(config.domain, self.known) if self.known is not None else None,
        ]
        return [rule for rule in rules if rule is not None]


def cook_block(lines: Sequence[RawLine], kitchen: Kitchen, rules: Sequence[Rule]) -> CookedBlock:
    """Return the block's documents after these rules. Raises DataError for a bad line under on_error "raise"."""
    tally = Tally.of(rule.name for rule in rules)
    documents = []
    for raw in lines:
        tally.lines += 1
        draft = _parsed(raw, kitchen.config, tally)
        if draft is not None:
            documents.append(_cook(draft, rules, tally, kitchen.config.examples))
    return CookedBlock(documents, tally)


def count_lines(lines: Sequence[RawLine], kitchen: Kitchen) -> tuple[list[Hashes], int]:
    """Return the hashes of lines that may be boilerplate, one array for each document that has some, and how many
    documents there are."""
    unused = Tally()
    lenient = kitchen.config.replace(on_error="skip")  # the pass with the rules is the one that speaks up
    drafts = [draft for raw in lines if (draft := _parsed(raw, lenient, unused)) is not None]
    found = [countable_lines(draft.text) for draft in drafts if not draft.is_chat and draft.text.count("\n") > 1]
    return [hashes for hashes in found if len(hashes)], len(drafts)


def _parsed(raw: RawLine, config: CookerConfig, tally: Tally) -> Draft | None:
    try:
        if raw.bad is not None:
            reason, _, detail = raw.bad.partition(": ")
            raise BadRecord(reason, detail)
        record = parse(renamed(raw.data, config.rename), keep_surrogates=config.encoding.enabled)
    except BadRecord as bad:
        where = f"{raw.path}:{raw.line}"
        if config.on_error == "raise":
            detail = f": {bad.detail}" if bad.detail else ""
            raise DataError(
                f"{where}: {bad.reason}{detail}", fix="correct it, or set on_error: skip to go on without such lines"
            ) from None
        tally.skip(where, bad.reason, bad.detail)
        return None
    draft = Draft(record, texts_of(record), raw.path, raw.line)
    if not draft.text.strip():
        tally.empty += 1
        return None
    return draft


def _cook(draft: Draft, rules: Sequence[Rule], tally: Tally, most: int) -> Cooked:
    cooked = Cooked(draft)
    cooked.score = quality_score(draft.text)
    tally.before.add(len(draft.text), cooked.score, draft.language)
    for rule in rules:
        verdict = rule.apply(cooked.draft)
        tally.rules[rule.name].seen += 1
        record_verdict(cooked, rule.name, verdict, tally, most)
        if cooked.dropped:
            return cooked
    if cooked.draft.texts != draft.texts:
        cooked.score = quality_score(cooked.draft.text)
    return cooked


def record_verdict(cooked: Cooked, rule: str, verdict: Change | Drop | None, tally: Tally, most: int) -> None:
    """Do to the document what a rule decided, and count it."""
    if verdict is None:
        return
    before = cooked.draft
    action = "drop" if isinstance(verdict, Drop) else "change"
    counts = tally.rules[rule]
    if isinstance(verdict, Drop):
        cooked.dropped = True
        counts.dropped += 1
        shown = example(before.source, verdict.reason, verdict.value, before.text)
    else:
        after = before.with_texts(verdict.texts)
        counts.changed += after.texts != before.texts
        shown = example(before.source, verdict.reason, verdict.value, before.text, after.text)
        cooked.draft = after
    counts.note(verdict.reason, shown, most)
    cooked.steps.append(Step(rule, action, verdict.reason, verdict.value, before.texts))


def quality_score(text: str) -> float:
    """Return the share of letters times the share of text that is not in repeated 5-grams: 0 (noise) to 1."""
    head = text[:20_000]
    letters = letter_share(head)
    return letters * (1.0 - repeated_share(head)) if letters else 0.0
