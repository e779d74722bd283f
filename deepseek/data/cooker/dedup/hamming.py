"""All pairs of 64-bit codes that differ in at most k bits: none missed, without comparing every pair.

The 64 bits are cut into m blocks. Two codes that differ in k bits agree in at least m - k blocks whole, so both are in
one bucket of the table for those blocks (Manku et al. 2007, https://doi.org/10.1145/1242572.1242592, section 3). More
blocks make more tables with smaller buckets; the plan with the least work for the number of codes is taken.
Not here: codes that come block after block (`simhash_index`).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.bucket_tables import ranges
from deepseek.data.cooker.dedup.parallel import map_threads
from deepseek.errors import ConfigError, DataError

BITS = 64
MAX_DISTANCE = 16
MAX_KEY_BITS = 16  # numpy sorts keys of 16 bits by radix
_MAX_TABLES = 4000
_MAX_PAIRS = 20_000_000


class Plan(NamedTuple):
    """How the bits are cut for a distance, and the tables that follow."""

    distance: int
    blocks: tuple[tuple[int, int], ...]
    """(first bit, number of bits) each."""
    tables: tuple[tuple[int, ...], ...]
    """The blocks that make the key, for each table."""

    def keys(self, codes: NDArray[np.uint64], table: tuple[int, ...]) -> NDArray[np.uint16]:
        """Return the key of each code in `table`, uint16 (codes,)."""
        found = np.zeros(len(codes), dtype=np.uint64)
        for block in table:
            first, width = self.blocks[block]
            found <<= np.uint64(width)
            found |= (codes >> np.uint64(first)) & np.uint64((1 << width) - 1)
        return found.astype(np.uint16)

    def share_bucket(self, differences: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which pairs, by the exclusive or of their codes, agree in all blocks of some table."""
        agreed = np.zeros(len(differences), dtype=np.int64)
        for first, width in self.blocks:
            agreed += (differences >> np.uint64(first)) & np.uint64((1 << width) - 1) == 0
        found: NDArray[np.bool_] = agreed >= len(self.tables[0])
        return found


class Wider(NamedTuple):
    """What else to propose, where the pairs are verified afterwards: codes further apart, by a second look."""

    codes: NDArray[np.uint64]
    """(codes,): second, independent codes of the same things."""
    reach: int
    """How many bits the first codes may be apart."""
    total: int
    """How many bits both may be apart together."""


def plan_search(distance: int, num_codes: int) -> Plan:
    """Return the plan with the least work for `num_codes` codes. Raises ConfigError for a distance not in 0 to 16."""
    if not 0 <= distance <= MAX_DISTANCE:
        raise ConfigError("the Hamming distance is out of range", found=distance, wanted=f"0 to {MAX_DISTANCE}")
    best: tuple[float, int] | None = None
    for num_blocks in range(distance + 1, min(BITS, distance + 6) + 1):
        tables = math.comb(num_blocks, distance)
        key_bits = (num_blocks - distance) * (BITS / num_blocks)
        if tables > _MAX_TABLES or (key_bits > MAX_KEY_BITS and num_blocks > distance + 1):
            continue
        work = tables * (8.0 * num_codes + 0.5 * num_codes**2 / 2 ** min(key_bits, MAX_KEY_BITS))
        if best is None or work < best[0]:
            best = work, num_blocks
    num_blocks = best[1] if best is not None else distance + 1
    edges = [round(place * BITS / num_blocks) for place in range(num_blocks + 1)]
    blocks = tuple((low, min(high - low, MAX_KEY_BITS)) for low, high in itertools.pairwise(edges))
    return Plan(distance, blocks, tuple(itertools.combinations(range(num_blocks), num_blocks - distance)))


def hamming_pairs(
    codes: NDArray[np.uint64],
    distance: int,
    workers: int | None = None,
    wider: Wider | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return (earlier, later, distance) of all pairs of places in `codes` at most `distance` bits apart, sorted.

    Equal codes are compared as one: each later copy is paired with the first alone, and the pairs of a code with
    others are those of its first copy. With `wider`, pairs further apart that share a bucket are returned too, and
    all must pass its second codes. Raises DataError past 20 million pairs in one table.
    """
    values, firsts, which = np.unique(codes, return_index=True, return_inverse=True)
    first_of = firsts[which]
    copies = np.flatnonzero(first_of != np.arange(len(codes)))
    plan = plan_search(distance, len(values))
    count = max(1, len(values))
    inner = None if wider is None else wider._replace(codes=wider.codes[firsts])
    groups = [plan.tables[start : start + 16] for start in range(0, len(plan.tables), 16)]

    def search(tables: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
        return _union([_table_pairs(values, plan.keys(values, table), distance, inner) for table in tables])

    pairs = _union(map_threads(search, iter(groups), workers))
    low, high = firsts[pairs // count], firsts[pairs % count]
    earlier = np.concatenate([np.minimum(low, high), first_of[copies]]).astype(np.int64)
    later = np.concatenate([np.maximum(low, high), copies]).astype(np.int64)
    order = np.lexsort((earlier, later))
    earlier, later = earlier[order], later[order]
    return earlier, later, np.bitwise_count(codes[earlier] ^ codes[later])


def _union(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    found = np.zeros(0, dtype=np.int64)
    for start in range(0, len(parts), 4):
        found = np.unique(np.concatenate([found, *parts[start : start + 4]]))
    return found


def _table_pairs(
    codes: NDArray[np.uint64], keys: NDArray[np.uint16], distance: int, wider: Wider | None
) -> NDArray[np.int64]:
    """Return low * len(codes) + high for the pairs of one table: each code against those behind it in its bucket."""
    count = len(codes)
    limit = distance if wider is None else wider.reach
    order = np.argsort(keys, kind="stable")
    sizes = np.bincount(keys)
    busy = np.flatnonzero(sizes > 1)
    busy = busy[np.argsort(-sizes[busy], kind="stable")]
    order = order[ranges((np.cumsum(sizes) - sizes)[busy], sizes[busy])]  # the largest bucket first, the smallest gone
    ordered, sizes = codes[order], sizes[busy]
    ends = np.cumsum(sizes)
    lefts, rights, total = [order[:0]], [order[:0]], 0
    for shift in range(1, int(sizes.max(initial=1))):
        end = int(ends[np.searchsorted(-sizes, -shift) - 1])  # buckets that are larger than the shift are before it
        # the neighbours of another bucket are compared as well, which is cheaper than to leave them out
        hits = np.flatnonzero(np.bitwise_count(ordered[shift:end] ^ ordered[: end - shift]) <= limit)
        if len(hits):
            lefts.append(hits)
            rights.append(hits + shift)
            total += len(hits)
        if total > _MAX_PAIRS:
            raise DataError(
                "too many texts are alike to list their pairs",
                found=f"over {_MAX_PAIRS:,} pairs at a distance of {limit}",
                fix="take a smaller distance, remove exact duplicates first, or let DedupState drop them as it goes",
            )
    one, other = order[np.concatenate(lefts)], order[np.concatenate(rights)]
    if wider is not None:
        apart = np.bitwise_count(codes[one] ^ codes[other])
        apart += np.bitwise_count(wider.codes[one] ^ wider.codes[other])
        one, other = one[apart <= wider.total], other[apart <= wider.total]
    found: NDArray[np.int64] = np.minimum(one, other) * count + np.maximum(one, other)
    return found
