"""Rule `contamination`: documents that share a 13-gram with an evaluation set are dropped.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C. Grams are of lower
case words without punctuation and, in Chinese, Japanese and Korean, of characters. An evaluation text too short is
one gram as a whole, if it has at least 8 units; shorter ones can't be told from chance and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.hashing import Hashes, ngram_hashes, text_hashes
from deepseek.data.cooker.script import units
from deepseek.data.sources import is_jsonl, source_files
from deepseek.errors import DataError

_SHORTEST = 8
_LONGEST_LINE = 32 * 1024 * 1024


@dataclass(frozen=True)
class Contamination:
    """`grams` maps a gram's length to the sorted hashes of the evaluation texts' grams of that length."""

    grams: dict[int, Hashes]
    name = "contamination"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the reason to drop; the value is how many grams are shared."""
        hashes = text_hashes(units(draft.text))
        shared = 0
        for length, known in self.grams.items():
            mine = ngram_hashes(hashes, length)
            if len(mine):
                places = np.minimum(np.searchsorted(known, mine), len(known) - 1)
                shared += int((known[places] == mine).sum())
        return Drop("in an evaluation set", shared) if shared else None


def evaluation_grams(sources: Iterable[str], n: int) -> dict[int, Hashes]:
    """Return the grams of every text in evaluation files: JSON lines (all texts in a record) or plain text.

    Raises DataError for files that can't be read, and where none has a text long enough.
    """
    found: dict[int, set[int]] = {}
    for source in sources:
        for path in source_files(source):
            for text in texts_in(path):
                hashes = text_hashes(units(text))
                length = min(n, len(hashes))
                if length >= min(n, _SHORTEST):
                    found.setdefault(length, set()).update(ngram_hashes(hashes, length).tolist())
    if not found:
        raise DataError("the evaluation sets hold no text", wanted=f"texts of at least {_SHORTEST} words or characters")
    return {length: np.array(sorted(grams), dtype=np.uint64) for length, grams in sorted(found.items())}


def texts_in(path: Path) -> Iterator[str]:
    """Yield each text in a file: every string in each record of JSON lines, each line of other files."""
    try:
        with open(path, "rb") as handle:
            number = 0
            while line := handle.readline(_LONGEST_LINE):
                number += 1
                text = line.decode("utf-8-sig")
                if is_jsonl(path):
                    yield from _strings(json.loads(text)) if text.strip() else ()
                else:
                    yield text
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"can't read the evaluation set {path}", found=str(error), wanted="JSON lines or UTF-8 text"
        ) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
