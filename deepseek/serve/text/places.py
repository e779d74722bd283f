"""Which row of a store belongs to which text: rows that were left are taken first, so that stores stay small."""

from __future__ import annotations

import heapq


class Places:
    """Numbers from 0 on for texts, as small as possible."""

    def __init__(self) -> None:
        self._place_of: dict[int, int] = {}
        self._free: list[int] = []

    def of(self, text: int) -> tuple[int, bool]:
        """Return a text's place, and whether it has just been given one."""
        place = self._place_of.get(text)
        if place is not None:
            return place, False
        place = heapq.heappop(self._free) if self._free else len(self._place_of)
        self._place_of[text] = place
        return place, True

    def leave(self, text: int) -> None:
        """Let others have the place of a text, if it has one."""
        place = self._place_of.pop(text, None)
        if place is not None:
            heapq.heappush(self._free, place)
