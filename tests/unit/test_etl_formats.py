"""Readers and writers: round trips, blocks of any size, and files that mean harm."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.data.audio import read_audio, write_audio
from deepseek.data.etl import DataPipeline, RunReport
from deepseek.data.etl.sources import _json_row
from deepseek.data.readers.json_line import parse_object
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DataError

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def run(plan: DataPipeline, out: Path, bad: Path | None = None) -> RunReport:
    return plan.run(workers=1, bad_rows=bad, resume=False)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(out.rglob("part-*.jsonl")) for line in path.read_bytes().splitlines()]


def bad_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@FEW
@given(
    st.lists(st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.none(), st.lists(TEXT)), max_size=4), max_size=20),
    st.integers(32, 300),
    st.booleans(),
)
def test_json_lines_come_through_blocks_of_any_size(tmp_path: Path, rows: list[dict], block: int, end: bool) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + ("\n" if end and rows else "")
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    run(DataPipeline.read(tmp_path / "in.jsonl", "jsonl", block_bytes=block).write(tmp_path / "out"), tmp_path)
    assert rows_of(tmp_path / "out") == rows


@FEW
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20), st.integers(32, 300), st.sampled_from(["\n", "\r\n"]))
def test_csv_comes_through_blocks_of_any_size(
    tmp_path: Path, rows: list[tuple[str, str]], block: int, end: str
) -> None:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("name", "text"), *rows])
    (tmp_path / "in.csv").write_bytes(target.getvalue().encode())
    read = DataPipeline.read(tmp_path / "in.csv", "csv", block_bytes=block, header=True)
    run(read.write(tmp_path / "out"), tmp_path)
    expected = [{"name": name, "text": text} for name, text in rows]
    assert rows_of(tmp_path / "out") == expected
    run(read.write(tmp_path / "table", format="csv"), tmp_path)
    again = DataPipeline.read(tmp_path / "table" / "*.csv", "csv", header=True)
    run(again.write(tmp_path / "back"), tmp_path)
    assert rows_of(tmp_path / "back") == expected


def test_a_single_empty_cell_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": ""}\n{"a": "x"}\n', encoding="utf-8")
    run(DataPipeline.read(tmp_path / "in.jsonl").write(tmp_path / "table", format="csv"), tmp_path)
    run(DataPipeline.read(tmp_path / "table" / "*.csv", header=True).write(tmp_path / "out"), tmp_path)
    assert rows_of(tmp_path / "out") == [{"a": ""}, {"a": "x"}]


@FEW
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), min_size=1), max_size=9))
def test_lines_of_text_come_through(tmp_path: Path, lines: list[str]) -> None:
    lines = [line for line in lines if not line.encode().isspace()]
    (tmp_path / "in.txt").write_bytes("\n".join(["x", *lines]).encode())
    read = DataPipeline.read(tmp_path / "in.txt", "text", block_bytes=40)
    run(read.write(tmp_path / "out", format="text"), tmp_path)
    found = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").glob("part-*")))
    assert found.decode().split("\n")[:-1] == ["x", *lines]


def test_parquet_comes_through_with_its_types(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    drawn = random.Random(0)
    rows = [
        {
            "id": n,
            "x": drawn.random(),
            "text": f"字 {n}",
            "tags": ["a"] * (n % 3),
            "none": None,
            "raw": bytes([n % 256]),
        }
        for n in range(1000)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=300)
    read = DataPipeline.read(tmp_path / "in.parquet")
    report = run(read.write(tmp_path / "out", format="parquet"), tmp_path)
    assert len(report.files) == 4 and report.rows_written == 1000
    tables = [parquet.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [row for table in tables for row in table.to_pylist()] == rows
    typed = {"id": "int32", "x": "float"}
    run(read.shuffle().write(tmp_path / "typed", format="parquet", columns=typed), tmp_path)
    table = parquet.read_table(next((tmp_path / "typed").glob("*.parquet")))
    assert table.schema.names == ["id", "x"] and str(table.schema.types) == "[DataType(int32), DataType(float)]"


def _mixed(row: dict) -> dict:
    return {"id": row["id"] if row["id"] < 900 else str(row["id"])}


def test_parquet_files_of_several_types_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"id": list(range(1000))}), tmp_path / "in.parquet", row_group_size=100)
    with pytest.raises(DataError, match="different columns|several types"):
        run(DataPipeline.read(tmp_path / "in.parquet").map(_mixed).write(tmp_path / "out", "parquet"), tmp_path)
    whole = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no whole Parquet file"):
        run(DataPipeline.read(tmp_path / "cut.parquet").write(tmp_path / "o2"), tmp_path)


def _louder(row: dict) -> dict:
    return {**row, "samples": row["samples"] * 0.5, "name": Path(row["path"]).stem}


def test_sounds_come_through_and_broken_ones_go_aside(tmp_path: Path) -> None:
    waves = {}
    for number in range(3):
        waves[number] = torch.sin(torch.arange(800) * 0.01 * (number + 1)) * 0.5
        write_audio(tmp_path / f"{number}.wav", waves[number], 8000)
    whole = (tmp_path / "1.wav").read_bytes()
    (tmp_path / "1.wav").write_bytes(whole[:200])
    bad = tmp_path / "bad.jsonl"
    plan = DataPipeline.read(tmp_path / "*.wav").map(_louder).shuffle().write(tmp_path / "out", format="wav")
    assert run(plan, tmp_path, bad).rows_written == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "part-00000" / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == ["0", "2"]
    for row in rows:
        samples, rate = read_audio(tmp_path / "out" / "part-00000" / row["path"])
        assert rate == 8000 and torch.allclose(samples, waves[int(row["name"])] * 0.5, atol=1e-4)
    (entry,) = bad_of(bad)
    assert entry["file"].endswith("1.wav") and entry["reason"] == "can't be decoded" and entry["step"].startswith("1.")


def _turned(row: dict) -> dict:
    return {"image": np.ascontiguousarray(row["image"][:, :, ::-1]), "name": Path(row["path"]).stem}


def test_images_come_through(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image_module.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    report = run(
        DataPipeline.read(tmp_path / "*.png").map(_turned).write(tmp_path / "out", format="png"),
        tmp_path,
        tmp_path / "bad.jsonl",
    )
    assert (report.rows_written, report.bad) == (1, 1)
    with image_module.open(tmp_path / "out" / "part-00000" / "000000.png") as image:
        assert np.array_equal(np.array(image), pixels[:, ::-1])


HOSTILE = {
    b'{"text": "nul \0"}': "NUL bytes",
    b'{"text": "lone \\ud800"}': "lone surrogate",
    b'{"text": "\xff"}': "not valid UTF-8",
    b'{"text": NaN}': "not valid JSON",
    b'{"a": 1, "a": 2}': "repeated key",
    b'{"a" :1, "a":2}': "repeated key",
    b'{"a": {"b": 1, "b": 2}}': "repeated key",
    b'{"a": 1} x': "not valid JSON",
    b"[1]": "not a JSON object",
    b"[" * 100_000: "not valid JSON",
    b'{"a": ' + b"9" * 5000 + b"}": "not valid JSON",
    b'{"text": "' + b"x" * 300_000 + b'"}': "line too long",
}


def test_hostile_json_lines_go_aside_with_their_reasons(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + b'{"text": "first"}\r']
    for number, line in enumerate(HOSTILE):
        lines += [line, b'{"text": "good %d"}\r' % number, b"", b"  "]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b'\n{"text": "\\ud83d\\ude00 no end"}')
    for block in (7000, 1 << 20):
        read = DataPipeline.read(tmp_path / "in.jsonl", "jsonl", block_bytes=block, max_line_bytes=200_000)
        report = run(read.write(tmp_path / "out"), tmp_path, tmp_path / "bad.jsonl")
        found = bad_of(tmp_path / "bad.jsonl")
        assert [(entry["line"], entry["reason"]) for entry in found] == [
            (2 + 4 * number, reason) for number, reason in enumerate(HOSTILE.values())
        ]
        texts = [row["text"] for row in rows_of(tmp_path / "out")]
        assert texts == ["first", *[f"good {number}" for number in range(len(HOSTILE))], "😀 no end"]
        assert report.bad == len(HOSTILE) and report.rows_read == len(texts) + len(HOSTILE)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text('{}":,ab\\u0d8 1[]', max_size=30).map(str.encode)))
def test_the_quick_way_of_reading_a_line_takes_and_refuses_what_the_careful_one_does(line: bytes) -> None:
    def outcome(parse):
        try:
            return parse(line)
        except BadRecord as bad:
            return bad.reason

    if b"\n" not in line:
        assert outcome(_json_row) == outcome(parse_object)


def test_hostile_csv_goes_aside_and_the_rest_stays(tmp_path: Path) -> None:
    rows = [b"a,b", b"1,2", b"3", b"4,\0", b"5,\xff", b'6,"x"y', b"7,8", b'9,"' + b"z" * 200_000 + b'"', b'10,"open']
    (tmp_path / "in.csv").write_bytes(b"\n".join(rows))
    read = DataPipeline.read(tmp_path / "in.csv", "csv", header=True, block_bytes=3000)
    report = run(read.write(tmp_path / "out"), tmp_path, tmp_path / "bad.jsonl")
    assert rows_of(tmp_path / "out") == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    assert [entry["line"] for entry in bad_of(tmp_path / "bad.jsonl")] == [3, 4, 5, 6, 8, 9]
    assert report.bad == 6


def test_what_a_format_can_not_hold_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a\\nb", "x": [1]}\n{"text": "c", "x": 2}\n', encoding="utf-8")
    for form, says in (("text", "a line end"), ("csv", "no cell")):
        plan = DataPipeline.read(tmp_path / "in.jsonl").write(tmp_path / form, format=form)
        with pytest.raises(DataError, match=says):
            run(plan, tmp_path)
        assert run(plan, tmp_path, tmp_path / "bad.jsonl").rows_written == 1
    with pytest.raises(DataError, match="no column 'y'"):
        run(DataPipeline.read(tmp_path / "in.jsonl").write(tmp_path / "o", columns=["y"]), tmp_path)
