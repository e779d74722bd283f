"""The counts of several workers as one: each writes its own on a board, and any of them can tell the sum.

What a worker that died had counted stays in its place as the past, so that no total falls. How values become one is
said in the table of definitions: sums for counts, the least, the most, or each for itself under a label `worker`.
Not here: the board's memory (see `board`), and the text for Prometheus (see `metrics`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from deepseek.serve.monitoring.board import Board
from deepseek.serve.monitoring.definitions import SCRAPED, Series

Totals = dict[Series, float]
"""Values by series: its name and the labels' values in the definition's order (a bucket's bound comes last)."""


class Told(NamedTuple):
    """What stands in one worker's place."""

    past: Totals
    """Sums of those who had the place before."""
    now: Totals


class Together:
    """One worker's way to the board."""

    def __init__(self, board: Board, place: int) -> None:
        """Take over a place; what its last owner counted becomes the past."""
        self._board = board
        self._place = place
        fold(board, place)
        self._past = _read(board, place).past

    def totals(self, now: Totals) -> Totals:
        """Write this worker's counts, and return those of all. What was told once is never taken back."""
        self.write(now)
        return merged({place: _read(self._board, place) for place in range(self._board.places)})

    def write(self, now: Totals) -> None:
        """Write this worker's counts for the others."""
        self._board.write(self._place, _text(Told(self._past, now)))


def fold(board: Board, place: int) -> None:
    """Make a place's counts past: whoever counted them is gone, and with it what was so now."""
    told = _read(board, place)
    if told.now:
        board.write(place, _text(Told(_sum((told.past, told.now)), {})))


def merged(places: Mapping[int, Told]) -> Totals:
    """Return the values of all places as one."""
    totals: Totals = {}
    for told in places.values():
        for series, value in told.past.items():
            totals[series] = totals.get(series, 0.0) + value
    for place, told in places.items():
        for series, value in told.now.items():
            across = SCRAPED[series[0]].across
            if across == "each":
                totals[series[0], (*series[1], str(place))] = value
            elif series not in totals:
                totals[series] = value
            elif across == "sum":
                totals[series] += value
            else:
                totals[series] = max(totals[series], value) if across == "max" else min(totals[series], value)
    return totals


def _sum(parts: Iterable[Totals]) -> Totals:
    """Return the sums of what only grows."""
    totals: Totals = {}
    for part in parts:
        for series, value in part.items():
            definition = SCRAPED[series[0]]
            if definition.kind != "gauge" and definition.across == "sum":
                totals[series] = totals.get(series, 0.0) + value
    return totals


def _text(told: Told) -> bytes:
    return json.dumps([[[*series, value] for series, value in part.items()] for part in told]).encode()


def _read(board: Board, place: int) -> Told:
    text = board.read(place)
    parts = json.loads(text) if text else ([], [])
    return Told(*({(name, tuple(labels)): value for name, labels, value in part} for part in parts))
