"""Rule `duplicates`: a document that came before, wholly or nearly, is dropped; the first stays.

The search is `cooker.dedup`; its state is saved with the run, so that a run that goes on knows what came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepseek.data.cooker.config import DuplicatesConfig
from deepseek.data.cooker.dedup import DedupState
from deepseek.data.cooker.draft import Change, Draft, Drop

_REASONS = {"exact": "the same text before", "simhash": "nearly the same before", "minhash": "nearly the same before"}


class Duplicates:
    """Remembers what it has seen, in a few bytes a document."""

    name = "duplicates"

    def __init__(self, config: DuplicatesConfig) -> None:
        self._config = config
        self._state = DedupState(method=config.method, threshold=config.threshold)

    def apply(self, drafts: Sequence[Draft]) -> list[Change | Drop | None]:
        """Return for each document the reason to drop it; the value is the method."""
        if not drafts:
            return []
        keep = self._state.add([draft.text for draft in drafts])
        drop = Drop(_REASONS[self._config.method], self._config.method)
        return [None if kept else drop for kept in keep.tolist()]

    def save(self, path: Path) -> None:
        """Write the state to a file."""
        self._state.save(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote. Raises DataError."""
        self._state = DedupState.load(path)
