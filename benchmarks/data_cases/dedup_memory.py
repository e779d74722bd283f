"""A million short texts through `DedupState`: within 2 GiB in all, whatever the method keeps of them.

Texts of one or two sentences of Python's documentation come in blocks of 8192; a fifth are copies with a word dropped.
The figure is texts a second; the peak is that of the whole process, interpreter and PyTorch included.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.data_cases.case import Measure
from benchmarks.data_cases.dedup import sentences
from deepseek.data.cooker.dedup import DedupState
from deepseek.data.cooker.dedup.edits import drop_words

_BLOCK = 8192
_SWAPPED = 6

MEASURES = tuple(
    Measure(f"million_{method}", "texts/s", at_least={"found": 0.5}, at_most={"peak_gib": 2.0})
    for method in ("simhash", "minhash")
)


def prepare(folder: Path, quick: bool) -> None:
    """Write the sentences that texts are made of."""
    (folder / "pool.json").write_text(json.dumps(sentences()))


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return texts a second, the peak in GiB, and the share of copies that were dropped."""
    pool: list[str] = json.loads((folder / "pool.json").read_text())
    state = DedupState("simhash" if measure == "million_simhash" else "minhash")
    total, spent, hits, copies = (50_000 if quick else 1_000_000), 0.0, 0, 0
    for texts, is_copy in _blocks(pool, total):
        start = time.perf_counter()
        keep = state.add(texts)
        spent += time.perf_counter() - start
        hits += int(np.count_nonzero(~keep & is_copy))
        copies += int(np.count_nonzero(is_copy))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return total / spent, {"peak_gib": peak / 2**30, "found": hits / max(1, copies), "kept": float(len(state))}


def _blocks(pool: list[str], total: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield texts, and which are copies of one before them: words of one sentence in the frame of another."""
    rng = np.random.default_rng(3)
    for start in range(0, total, _BLOCK):
        count = min(_BLOCK, total - start)
        texts: list[str] = []
        is_copy = np.zeros(count, dtype=np.bool_)
        for place in range(count):
            if place and rng.random() < 0.2:
                texts.append(drop_words(texts[rng.integers(place)], 0.01, rng))
                is_copy[place] = True
                continue
            words = pool[rng.integers(len(pool))].split() + pool[rng.integers(len(pool))].split()
            for at in rng.integers(0, len(words), _SWAPPED):  # pairs of sentences alone would repeat
                words[at] = f"{words[at]}{rng.integers(1000)}"
            texts.append(" ".join(words))
        yield texts, is_copy
