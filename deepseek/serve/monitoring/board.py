"""A board on which each of several processes has a place: it writes there, and all others read it.

A place holds the last two texts, each with its turn, its length and a checksum: a writer that dies in the middle
leaves the one before, and a reader that meets a half-written one takes the other. So nobody waits for anybody.
Not here: what is written (see `together`).
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple, Self

from deepseek.serve.shared_file import SharedFile

_HEAD = struct.Struct("<QII")  # turn, length, CRC-32
_TEXT_BYTES = 1 << 20
_TRIES = 16


class _Found(NamedTuple):
    turn: int
    text: bytes


class Board:
    """The board in a shared file; each place has one writer at a time."""

    def __init__(self, file: SharedFile) -> None:
        """Take a file as `make` makes it."""
        self.file = file
        self.places = len(file.memory) // (2 * _TEXT_BYTES)
        self._memory = file.memory

    @classmethod
    def make(cls, places: int) -> Self:
        """Return an empty board."""
        return cls(SharedFile.make("board", 2 * places * _TEXT_BYTES))

    def write(self, place: int, text: bytes) -> bool:
        """Write a place's next text; return False for one that is too long, and the last one stays."""
        if len(text) > _TEXT_BYTES - _HEAD.size:
            return False
        turn = self._newest(place).turn + 1
        start = self._start(place, turn)
        self._memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        self._memory[start : start + _HEAD.size] = _HEAD.pack(turn, len(text), zlib.crc32(text))
        return True

    def read(self, place: int) -> bytes:
        """Return a place's newest text, b"" where nothing was written."""
        for _ in range(_TRIES):
            found = self._newest(place)
            if found.turn:
                return found.text
        return b""

    def _newest(self, place: int) -> _Found:
        """Return the newest whole text; turn 0 where there is none at this moment."""
        return max(self._look(self._start(place, turn)) for turn in (0, 1))

    def _look(self, start: int) -> _Found:
        turn, length, checksum = _HEAD.unpack_from(self._memory, start)
        if not turn or length > _TEXT_BYTES - _HEAD.size:
            return _Found(0, b"")
        text = self._memory[start + _HEAD.size : start + _HEAD.size + length]
        return _Found(turn, text) if zlib.crc32(text) == checksum else _Found(0, b"")

    def _start(self, place: int, turn: int) -> int:
        return (2 * place + turn % 2) * _TEXT_BYTES
