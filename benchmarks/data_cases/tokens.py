"""Tokens: encoding lines of real text against the `tokenizers` batch call, and JSON lines to packed tokens without it.

The text is that of Python's own documentation, cut into lines of about 80 characters, and Chinese made of its words.
`encode` and `encode_chinese` count characters, ids given out as lists by both. `jsonl_to_packed` counts lines, from the
file to the last training batch, with a stand-in for the tokenizer that has its ids ready: what is left is reading,
parsing, checking, the cache and the packing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_cases.case import OURS, Measure
from deepseek.data import PackedDataset, Tokenizer, build_token_cache, python_corpus

MEASURES = (
    Measure("encode", "characters/s", targets={"tokenizers": 0.95}, tolerance={"tokens": 0.0, "checksum": 0.0}),
    Measure("encode_chinese", "characters/s", targets={"tokenizers": 0.95}, tolerance={"tokens": 0.0, "checksum": 0.0}),
    Measure("jsonl_to_packed", "lines/s", at_least={"rate": 100_000.0}),
)
_LINE = 80
_AT_ONCE = 10_000
_MAX_LENGTH = 512
_HAN = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去"
    "行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从深度习框架"
)


def prepare(folder: Path, quick: bool) -> None:
    """Write the tokenizer and the lines of both languages."""
    words = " ".join(python_corpus()).split()
    count = 50_000 if quick else 300_000
    lines, start = [], 0
    while len(lines) < count:
        end, size = start, 0
        while size < _LINE:
            size += len(words[end % len(words)]) + 1
            end += 1
        lines.append(" ".join(words[place % len(words)] for place in range(start, end)))
        start = end
    chinese = _chinese(count // 4)
    Tokenizer.train([*lines[:20_000], *chinese[:5_000]], 16384).save(folder / "tokenizer.json")
    for name, texts in (("encode", lines), ("encode_chinese", chinese)):
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def _chinese(count: int) -> list[str]:
    """Return sentences of words of one to four characters, the frequent ones often (Zipf), with Chinese marks."""
    drawn = random.Random(11)
    words = ["".join(drawn.choices(_HAN, k=drawn.choice((1, 2, 2, 2, 3, 4)))) for _ in range(8000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    found = []
    for _ in range(count):
        clauses = ["".join(drawn.choices(words, weights, k=drawn.randint(3, 9))) for _ in range(5)]
        found.append("，".join(clauses) + "。")
    return found


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return items per second of one contestant, and its outputs."""
    if measure == "jsonl_to_packed":
        return _packed(folder, quick)
    rows = (folder / f"{measure}.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(row)["text"] for row in rows if row]
    encode = _ours(folder) if contestant == OURS else _library(folder)
    encode(texts[:_AT_ONCE])
    texts = texts[_AT_ONCE:]  # one pass: what was read before would be remembered
    begin = time.perf_counter()
    found = _all(encode, texts)
    seconds = time.perf_counter() - begin
    flat = np.concatenate([np.array(ids, dtype=np.int64) for ids in found])
    checksum = float((flat * (np.arange(len(flat)) % 97 + 1)).sum())
    return sum(map(len, texts)) / seconds, {"tokens": float(len(flat)), "checksum": checksum}


def _all(encode: Callable[[list[str]], list[list[int]]], texts: list[str]) -> list[list[int]]:
    return [ids for start in range(0, len(texts), _AT_ONCE) for ids in encode(texts[start : start + _AT_ONCE])]


def _ours(folder: Path) -> Callable[[list[str]], list[list[int]]]:
    return Tokenizer.load(folder / "tokenizer.json").encode_batch


def _library(folder: Path) -> Callable[[list[str]], list[list[int]]]:
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # the same work: special tokens in the text stay text
    return lambda texts: [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]


class _Given(Tokenizer):
    """Gives ids that lie ready, one for four characters, so that nothing is tokenized."""

    _ready = list(range(300, 700))

    def encode_batch(self, texts: Sequence[str], **_: Any) -> list[list[int]]:
        return [self._ready[: len(text) // 4] for text in texts]


def _packed(folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    source = folder / "encode.jsonl"
    with open(source, "rb") as handle:
        count = sum(1 for _ in handle)
    given = _Given((folder / "tokenizer.json").read_text(encoding="utf-8"))
    turns = iter(range(1 << 20))

    def once() -> int:
        place = folder / "cache" / f"{next(turns)}-{time.time_ns()}"  # a new one each time: nothing is found ready
        dataset = PackedDataset(build_token_cache(source, given, place), _MAX_LENGTH)
        return sum(
            dataset.get_batch(0, np.arange(start, min(start + 64, len(dataset))))["input_ids"].size
            for start in range(0, len(dataset), 64)
        )

    once()
    times: list[float] = []
    while sum(times) < (1.0 if quick else 4.0) or len(times) < 3:
        begin = time.perf_counter()
        tokens = once()
        times.append(time.perf_counter() - begin)
    return count / min(times), {"packed_tokens": float(tokens)}
