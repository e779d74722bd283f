"""Stop strings in a stream of text: the text before the first one, and never a piece of one.

Text that may be the beginning of a stop string is held back until it is known not to be. The result does not depend
on how the text was cut into pieces. Not here: stop tokens (the engine knows those by id).
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until a stop string is complete.

    Where several stop strings match, the one that is complete first wins; of those, the one that began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that is safe to show. Nothing comes out any more once `stopped` is set."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self.stopped = True
            self._held = ""
            return text[: min(matches)[1]]
        held = max(_overlap(text, stop) for stop in self._stops)
        shown = len(text) - held
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """Return what was held back: the stream ended, so no stop string was begun after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`, short of the whole of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
