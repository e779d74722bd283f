"""Rule `sensitive`: documents with words of the user's list are dropped, or the words masked. No list is built in."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek.data.cooker.config import SensitiveConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.word_search import WordSearch


@dataclass(frozen=True)
class Sensitive:
    """Looks for the words of `search`."""

    config: SensitiveConfig
    search: WordSearch
    name = "sensitive"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the masked texts or the reason to drop; the value names the words found (at most five)."""
        found = [self.search.find(text) for text in draft.texts]
        hits = [word for places in found for _, _, word in places]
        if len(hits) < self.config.min_hits:
            return None
        value = ", ".join(dict.fromkeys(hits[:5]))
        if self.config.action == "drop":
            return Drop("sensitive words", value)
        return Change(tuple(map(_masked, draft.texts, found)), "sensitive words masked", value)


def _masked(text: str, found: list[tuple[int, int, str]]) -> str:
    letters = list(text)
    for start, end, _ in found:
        letters[start:end] = "*" * (end - start)
    return "".join(letters)
