"""Rule `quality`: the document rules of MassiveText, for words or, in Chinese and Japanese, for characters.

Source: Rae et al. 2021, "Scaling Language Models" (Gopher), arXiv:2112.11446, appendix A1.1. The limits are settings;
the smallest length is lower than the paper's 50 words, which is meant for web pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek.data.cooker.config import QualityConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.repetition import repetition
from deepseek.data.cooker.script import units, unspaced, words
from deepseek.data.cooker.stop_words import STOP_WORDS

_BULLETS = ("-", "*", "•", "·", "●", "○", "■", "□", "‣", "▪", "►", "–")
_ENDS = ("...", "…")
_LONG_ENOUGH_FOR_STOP_WORDS = 50
_LONG_TEXT = 200


@dataclass(frozen=True)
class Quality:
    """Drops a document at the first measure outside its limits; the value is what was measured."""

    config: QualityConfig
    name = "quality"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return why the document is given up, with the measured value."""
        limits = self.config.limits_for(draft.language)
        text = draft.text
        characters, found = unspaced(text), words(text)
        dense = characters > 2 * len(found)
        length = characters + len(found) if dense else len(found)
        if length < limits.min_length:
            return Drop("too short", length)
        if length > limits.max_length:
            return Drop("too long", length)
        for reason, value, low, high in self._measures(text, found, characters, dense):
            if not low <= value <= high:
                return Drop(reason, round(value, 4))
        if draft.language in STOP_WORDS and len(found) >= _LONG_ENOUGH_FOR_STOP_WORDS:
            known = len(STOP_WORDS[draft.language].intersection(word.lower() for word in found))
            if known < limits.min_stop_words:
                return Drop("few common words", known)
        return next(filter(None, map(self._repeated, draft.texts)), None)

    def _measures(
        self, text: str, found: list[str], characters: int, dense: bool
    ) -> list[tuple[str, float, float, float]]:
        """Return (reason, value, lowest, highest) of what is measured on the text and on its lines."""
        limits = self.config
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        count = max(1, characters + len(found))
        symbols = len(_SYMBOLS.findall(text))
        measures = [
            ("few letters", letter_share(text), limits.min_letter_share, 1.0),
            ("many symbols (# and ...)", symbols / count, 0.0, limits.max_symbol_ratio),
        ]
        if len(lines) > 1:
            bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
            ends = sum(line.endswith(_ENDS) for line in lines) / len(lines)
            measures.append(("mostly bullet lines", bullets, 0.0, limits.max_bullet_lines))
            measures.append(("lines cut off by ...", ends, 0.0, limits.max_ellipsis_lines))
        if not dense and found:
            mean = sum(map(len, found)) / len(found)
            measures.append(("mean word length", mean, limits.min_mean_word, limits.max_mean_word))
        return measures

    def _repeated(self, text: str) -> Drop | None:
        """Return the reason to drop a text that repeats itself; a message of a chat is a text of its own.

        The paper's limits are for long pages. A short text repeats some words by chance: below 200 units the limits
        grow with the square root of how much shorter it is.
        """
        length = len(units(text)) if len(text) < 4 * _LONG_TEXT else _LONG_TEXT
        if length < self.config.repetition_from:
            return None
        wider = max(1.0, (_LONG_TEXT / length) ** 0.5)
        for measure in repetition(text):
            limit = self.config.max_repetition.get(measure.name)
            if limit is not None and measure.share > wider * limit:
                return Drop(f"repeated {measure.name}", round(measure.share, 4))
        return None


_SYMBOLS = re.compile(r"#+|…+|\.{3,}")
_NO_LETTERS = re.compile(r"[\W\d_]+")


def letter_share(text: str) -> float:
    """Return the share of letters (of any script) among the characters that are no space; 0 for none."""
    visible = sum(map(len, text.split()))
    return len(_NO_LETTERS.sub("", text)) / visible if visible else 0.0
