"""How often a key was seen lately, in a fixed quarter of a megabyte: what is seen once is not worth keeping.

A count-min sketch with conservative update whose counts are halved after a number of sightings, so that what was
popular once is forgotten (TinyLFU, Einziger, Friedman and Manes 2017, arXiv:1512.00727). Estimates are never too low
between two halvings; they are too high only where four counters are all shared with other keys.
"""

from __future__ import annotations

_ROWS = 4
_HALVED = bytes(value >> 1 for value in range(256))
_MOST = 15


class FrequencySketch:
    """Counts of keys up to 15. The hash is this process's own, so nobody can make keys that collide."""

    def __init__(self, bits: int = 16, sample: int | None = None) -> None:
        """Take 4 rows of 2**bits counters (1 to 16 bits); counts are halved after `sample` sightings."""
        self._mask = (1 << bits) - 1
        self._rows = [bytearray(1 << bits) for _ in range(_ROWS)]
        self._sample = sample or (1 << bits) // 2
        self._seen = 0

    def add(self, key: str) -> int:
        """Count a sighting; return how often the key was seen, this time included."""
        places = self._places(key)
        count = min(row[place] for row, place in zip(self._rows, places, strict=True))
        if count < _MOST:
            for row, place in zip(self._rows, places, strict=True):
                if row[place] == count:
                    row[place] = count + 1
        self._seen += 1
        if self._seen >= self._sample:
            self._age()
        return min(count + 1, _MOST)

    def count(self, key: str) -> int:
        """Return how often the key was seen lately."""
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))

    def _places(self, key: str) -> tuple[int, int, int, int]:
        code, mask = hash(key), self._mask
        return code & mask, (code >> 16) & mask, (code >> 32) & mask, (code >> 48) & mask

    def _age(self) -> None:
        self._rows = [row.translate(_HALVED) for row in self._rows]
        self._seen //= 2
