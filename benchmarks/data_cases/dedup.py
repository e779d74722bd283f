"""Near-duplicates: raw texts to the list of those to drop, ours against `rensa`, `datasketch` and `simhash`.

50,000 texts of 100 to 200 words, made of sentences of Python's documentation drawn at random, so that strangers share
sentences; a tenth are copies with words dropped, misspelt, sentences moved or boilerplate added at 1, 3, 5 and 10 %.
Everything counts, splitting into words too. Settings were chosen on other seeds: rensa's deduplicator at its most
exact setting that is still fast (16 bands), datasketch in bulk with banding for 0.6, the simhash package at a distance
of 3 (of Manku et al.). All may use all cores. F1 is of the texts dropped: the later of each planted pair should be.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data_cases.case import OURS, Measure
from deepseek.data.cooker.dedup import find_duplicates
from deepseek.data.cooker.dedup.quality import RATES, plant
from deepseek.data.corpus import python_corpus

NAME = "near_duplicates"
SEED = 1
OURS_MINHASH = "ours_minhash"

MEASURES = (
    Measure(
        NAME,
        "texts/s",
        targets={"simhash": 20.0, "rensa": 1.0, "datasketch": 1.0},
        references=(OURS_MINHASH,),
        needs={"simhash": "simhash", "rensa": "rensa", "datasketch": "datasketch"},
        at_least={"precision": 0.999},
        at_most={"left": 0.003},
        no_worse=("f1",),
    ),
)


def sentences() -> list[str]:
    """Return the distinct sentences of 5 to 40 words of Python's documentation."""
    found: dict[str, None] = {}
    for text in python_corpus():
        for sentence in re.split(r"(?<=[.!?])\s+|\n\n+", text):
            if 5 <= len(sentence.split()) <= 40:
                found[" ".join(sentence.split())] = None
    return list(found)


def prepare(folder: Path, quick: bool) -> None:
    """Write the texts, and for each planted pair its two places."""
    rng = np.random.default_rng(SEED)
    pool = sentences()
    originals = []
    for wanted in rng.integers(100, 201, 4_500 if quick else 45_000):
        chosen: list[str] = []
        words = 0
        while words < wanted:
            chosen.append(pool[rng.integers(len(pool))])
            words += chosen[-1].count(" ") + 1
        originals.append(" ".join(chosen))
    planted = plant(originals, 1 / 9, RATES, SEED)
    places = np.flatnonzero(planted.sources != np.arange(len(planted.texts)))
    pairs = np.stack([planted.sources[places], places], axis=1)
    (folder / "texts.json").write_text(json.dumps({"texts": planted.texts, "pairs": pairs.tolist()}))


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return texts a second, the best of a few passes, and how right the dropped ones are."""
    data = json.loads((folder / "texts.json").read_text())
    texts: list[str] = data["texts"]
    search = _CONTESTANTS[contestant]
    search(texts[:500])
    best, spent = float("inf"), 0.0
    dropped: list[int] = []
    while spent < (2 if quick else 6):
        start = time.perf_counter()
        dropped = search(texts)
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
    return len(texts) / best, _scores(dropped, data["pairs"], len(texts))


def _scores(dropped: list[int], pairs: list[list[int]], count: int) -> dict[str, float]:
    wanted = {max(pair) for pair in pairs}
    hits = len(wanted.intersection(dropped))
    return {
        "precision": hits / max(1, len(dropped)),
        "recall": hits / len(wanted),
        "f1": 2 * hits / (len(wanted) + len(dropped)),
        "left": (len(wanted) - hits) / (count - len(dropped)),
    }


def _ours(texts: list[str]) -> list[int]:
    return np.flatnonzero(~find_duplicates(texts).keep).tolist()


def _ours_minhash(texts: list[str]) -> list[int]:
    return np.flatnonzero(~find_duplicates(texts, "minhash").keep).tolist()


def _rensa(texts: list[str]) -> list[int]:
    from rensa import RMinHashDeduplicator

    keep = RMinHashDeduplicator(0.6, 128, True, 16).add_pairs((str(i), text.split()) for i, text in enumerate(texts))
    return [place for place, kept in enumerate(keep) if not kept]


def _datasketch(texts: list[str]) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    sketches = MinHash.bulk([[word.encode() for word in set(text.split())] for text in texts], num_perm=128)
    lsh = MinHashLSH(threshold=0.6, num_perm=128)
    dropped = []
    for place, sketch in enumerate(sketches):
        if any(sketch.jaccard(sketches[other]) >= 0.6 for other in lsh.query(sketch)):
            dropped.append(place)
        lsh.insert(place, sketch)
    return dropped


def _simhash(texts: list[str]) -> list[int]:
    from simhash import Simhash, SimhashIndex

    index = SimhashIndex([], k=3)
    dropped = []
    for place, text in enumerate(texts):
        code = Simhash(text)
        if index.get_near_dups(code):
            dropped.append(place)
        index.add(str(place), code)
    return dropped


_CONTESTANTS: dict[str, Callable[[list[str]], list[int]]] = {
    OURS: _ours,
    OURS_MINHASH: _ours_minhash,
    "rensa": _rensa,
    "datasketch": _datasketch,
    "simhash": _simhash,
}
