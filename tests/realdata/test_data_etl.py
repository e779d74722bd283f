"""Plans over public sets: maths problems, Chinese reviews, sentence pairs, network connections and spoken digits."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from deepseek.data.etl import DataPipeline

pytestmark = pytest.mark.realdata


def as_chat(row: dict) -> dict:
    answer = re.search(r"#### (\S+)", row["answer"])
    return {"prompt": row["question"], "response": row["answer"], "number": answer[1] if answer else None}


def whole_number(row: dict) -> bool:
    return bool(re.fullmatch(r"-?[0-9,]+", row["number"] or ""))


def first_half_second(row: dict) -> dict:
    digit, speaker, _ = Path(row["path"]).stem.split("_")
    return {"samples": row["samples"][:4000], "sample_rate": row["sample_rate"], "label": int(digit), "who": speaker}


def rows_of(folder: Path) -> list[dict]:
    paths = sorted(folder.rglob("part-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def test_maths_problems_are_split_and_shuffled_without_loss(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "text" / "gsm8k" / "train.jsonl"
    plan = DataPipeline.read(source, block_bytes=500_000).map(as_chat).filter(whole_number).dedup("prompt")
    plan = plan.split({"train": 0.9, "val": 0.1}, by="prompt").shuffle(seed=0)
    reports = [plan.write(tmp_path / str(workers)).run(workers=workers) for workers in (1, 2)]
    with open(source, encoding="utf-8") as lines:
        expected = [row for row in (as_chat(json.loads(line)) for line in lines) if whole_number(row)]
    found = rows_of(tmp_path / "1")
    assert len(expected) > 7000
    assert {row["prompt"]: row for row in found} == {row["prompt"]: row for row in reversed(expected)}
    assert len(found) == reports[0].rows_written == len({row["prompt"] for row in expected})
    assert 0.08 < reports[0].rows_of_split["val"] / len(found) < 0.12
    for path in (tmp_path / "1").rglob("part-*"):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_chinese_reviews_go_from_csv_to_parquet_and_back(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = next((real_data / "text" / "chnsenticorp").glob("*.csv"))
    with open(source, encoding="utf-8-sig", newline="") as handle:
        expected = list(csv.DictReader(handle))
    DataPipeline.read(source, block_bytes=300_000).write(tmp_path / "p", format="parquet").run(workers=1)
    DataPipeline.read(tmp_path / "p" / "*.parquet").write(tmp_path / "j").run(workers=1)
    assert rows_of(tmp_path / "j") == expected


def test_sentence_pairs_and_connections_come_through_in_any_blocks(real_data: Path, tmp_path: Path) -> None:
    for name in ("text/ocnli", "tabular/nsl_kdd"):
        files = sorted(path for path in (real_data / name).iterdir() if path.stat().st_size > 1_000_000)
        assert files, name
        out = []
        for block in (100_000, 1 << 30):
            folder = tmp_path / Path(name).name / str(block)
            read = DataPipeline.read([str(path) for path in files], block_bytes=block)
            report = read.write(folder).run(workers=1, bad_rows=tmp_path / "bad.jsonl")
            assert report.rows_written > 5000 and report.bad == 0
            out.append(rows_of(folder))
        assert out[0] == out[1]


def test_near_duplicates_of_reviews_are_found(real_data: Path, tmp_path: Path) -> None:
    source = next((real_data / "text" / "chnsenticorp").glob("*.csv"))
    read = DataPipeline.read(source, block_bytes=500_000).filter(lambda row: len(row["review"]) >= 50)
    exact = read.dedup("review").write(tmp_path / "exact").run(workers=1)
    near = read.dedup("review", "simhash", 0.8).write(tmp_path / "near").run(workers=1)
    assert near.rows_written <= exact.rows_written <= exact.rows_read
    kept = {row["review"] for row in rows_of(tmp_path / "near")}
    assert kept <= {row["review"] for row in rows_of(tmp_path / "exact")}
    assert near.rows_written > 0.9 * exact.rows_written


def test_spoken_digits_are_cut_and_written_again(real_data: Path, tmp_path: Path) -> None:
    read = DataPipeline.read(real_data / "audio" / "fsdd" / "*_theo_*.wav")
    report = read.map(first_half_second).write(tmp_path / "out", format="wav").run(workers=1)
    rows = [
        json.loads(line) for path in (tmp_path / "out").rglob("rows.jsonl") for line in path.read_text().splitlines()
    ]
    assert len(rows) == report.rows_written >= 100 and {row["label"] for row in rows} == set(range(10))
    assert {row["sample_rate"] for row in rows} == {8000}
