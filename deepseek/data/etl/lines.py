"""Lines of a part of a file, in bounded memory, and the numbers of lines for messages."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

_BLOCK = 1 << 20


def lines_between(path: str, start: int, end: int, max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (first byte, line with its end) of the lines that begin in `start`..`end`; None for one that is too long.

    A byte order mark belongs to no line. At most `max_line_bytes` of a line are held. Raises OSError.
    """
    with open(path, "rb", buffering=_BLOCK) as handle:
        place = _first_line(path, start, end)
        if place == 0 and handle.read(3) == codecs.BOM_UTF8:
            place = 3
        handle.seek(place)
        while place < end:
            line = handle.readline(max_line_bytes + 2)
            if not line:
                return
            size = len(line)
            if size > max_line_bytes and len(line.rstrip(b"\r\n")) > max_line_bytes:
                while not line.endswith(b"\n") and place + size < end and (line := handle.readline(_BLOCK)):
                    size += len(line)
                yield place, None
            else:
                yield place, line
            place += size


def _first_line(path: str, start: int, end: int) -> int:
    """Return the first byte of the first line that begins at `start` or behind; `end` where there is none before it."""
    if start == 0:
        return 0
    with open(path, "rb", buffering=0) as handle:
        handle.seek(start - 1)
        place = start - 1
        while place < end and (data := handle.read(_BLOCK)):
            found = data.find(b"\n")
            if found >= 0:
                return place + found + 1
            place += len(data)
    return end


class LineNumbers:
    """The number of the line at a byte of a file, counted only when a message needs it."""

    def __init__(self) -> None:
        self._last: tuple[str, int, int] = ("", 0, 1)

    def at(self, path: str, place: int) -> int:
        """Return the number, from 1, of the line that holds byte `place`. Raises OSError."""
        known, done, line = self._last
        if known != path or place < done:
            done, line = 0, 1
        with open(path, "rb", buffering=0) as handle:
            handle.seek(done)
            while done < place and (data := handle.read(min(_BLOCK, place - done))):
                line += data.count(b"\n")
                done += len(data)
        self._last = (path, place, line)
        return line
