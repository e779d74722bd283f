"""Near-duplicates in hotel reviews in Chinese and in English word problems."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from deepseek.data.cooker.dedup import find_duplicates, measure_quality

pytestmark = pytest.mark.realdata


def _reviews(folder: Path) -> list[str]:
    with open(folder / "text/chnsenticorp/ChnSentiCorp_htl_all.csv", encoding="utf-8", newline="") as handle:
        return [row["review"] for row in csv.DictReader(handle)]


def _problems(folder: Path) -> list[str]:
    lines = (folder / "text/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [" ".join((row["question"], row["answer"])) for row in map(json.loads, lines)]


def test_chinese_reviews_that_were_posted_twice_are_found(real_data: Path) -> None:
    reviews = _reviews(real_data)
    found = find_duplicates(reviews)
    assert 1 <= found.removed < 100  # most reviews are nobody's copy: Chinese does not collapse
    for one, other in found.pairs:
        assert set(reviews[one]) & set(reviews[other])


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_planted_copies_are_found(real_data: Path, method: str) -> None:
    for texts in (_reviews(real_data), _problems(real_data)):
        report = measure_quality(texts, method, sample=1000)  # type: ignore[arg-type]
        chosen = next(row for row in report.rows if row.chosen)
        assert chosen.precision > 0.98 and chosen.recall > 0.9
        assert chosen.left < 0.01
