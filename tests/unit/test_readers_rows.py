"""JSON lines, text lines and tables: every row in O(1), and what dirty files do."""

from __future__ import annotations

import csv
import json
import math
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.data.readers import CsvTable, JsonLines, TextLines, open_reader
from deepseek.data.readers.json_line import parse_object
from deepseek.data.record_forms import BadRecord
from deepseek.errors import ConfigError, DataError


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def records_of(reader: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in reader.read(row).items() if key != "path"} for row in range(len(reader))]


@given(st.lists(st.dictionaries(st.sampled_from(["text", "a", "b"]), st.one_of(st.text(), st.integers()), max_size=3)))
def test_json_lines_give_the_objects_back(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert parse_object(json.dumps(record).encode()) == record
        assert parse_object(json.dumps(record, ensure_ascii=False).encode()) == record


def test_rows_are_read_in_any_order_after_pickling(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{row} é 中"}, ensure_ascii=False) for row in range(50)]
    reader = JsonLines(write(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    again: JsonLines = pickle.loads(pickle.dumps(reader))
    assert len(again) == 50
    for row in (49, 0, 17):
        assert again.read(row) == {"text": f"{row} é 中", "path": str(tmp_path / "a.jsonl")}
    assert reader.sizes().tolist() == [len(line.encode()) for line in lines]
    with pytest.raises(IndexError):
        reader.read(50)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n', 2),
        (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', 2),
        (b'{"text": "a"}\n\n  \n{"text": "b"}', 2),
        (b'\xef\xbb\xbf{"text": "b"}', 1),
    ],
    ids=["bom", "crlf", "blank lines, no final newline", "bom, no newline"],
)
def test_marks_line_ends_and_blank_lines(tmp_path: Path, data: bytes, count: int) -> None:
    reader = JsonLines(write(tmp_path / "a.jsonl", data))
    assert [record["text"] for record in records_of(reader)] == ["a", "b"][-count:]


BAD_LINES = {
    b'{"text": "a\0"}': "NUL bytes",
    b'{"text": "\xff"}': "not valid UTF-8",
    b'{"text": "\\ud800"}': "lone surrogate",
    b'{"text": "a", "text": "b"}': "repeated key",
    b'{"text": "a"': "not valid JSON",
    b'{"text": NaN}': "not valid JSON",
    b"[" * 100_000: "not valid JSON",
    b'{"n": ' + b"9" * 5000 + b"}": "not valid JSON",
    b'["a"]': "not a JSON object",
    b"\xef\xbb\xbf{}": "not valid JSON",  # a mark anywhere but at the start
    b'{"boxes": [[1, 2, 3]]}': "boxes of a wrong form",
    b'{"boxes": "x"}': "boxes of a wrong form",
    b'{"boxes": [[5, 5, 4, 9]]}': "a box without area",
    b'{"boxes": [[1, 1, 2, 2]], "box_labels": []}': "boxes and box_labels differ",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=BAD_LINES.values())
def test_bad_lines_are_named_or_counted(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    with pytest.raises(DataError, match=BAD_LINES[line]) as caught:
        JsonLines(path)
    assert f"{path}:2" in str(caught.value) and "skip" in str(caught.value)
    reader = JsonLines(path, on_error="skip")
    assert [record["text"] for record in records_of(reader)] == ["first", "last"]
    assert reader.report.skipped == 1 and sum(reader.report.reasons.values()) == 1
    assert f"{path}:2" in reader.report.examples[0]


def test_bad_lines_are_found_when_read_where_nothing_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text"\n')
    reader = JsonLines(path, check=False)
    assert reader.read(0)["text"] == "a"
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        reader.read(1)
    with pytest.raises(ConfigError, match="no effect"):
        JsonLines(path, check=False, on_error="skip")


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_object(b'{"text": "\\ud83d\\ude00"}') == {"text": "\N{GRINNING FACE}"}
    with pytest.raises(BadRecord, match="lone surrogate"):
        parse_object(b'{"a": [{"\\uDFFF": 1}]}')


def test_a_line_of_a_hundred_megabytes_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        file.seek(100 * 1000 * 1000, 1)  # a hole: NUL bytes that need no disk
        file.write(b'"}\n{"text": "b"}\n')
    tracemalloc.start()
    reader = JsonLines(path, on_error="skip", max_line_bytes=1 << 20)
    lines = TextLines(path, on_error="skip", max_line_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert [record["text"] for record in records_of(reader)] == ["a", "b"]
    assert reader.report.reasons == lines.report.reasons == {"line too long": 1}
    with pytest.raises(DataError, match=r":2: line too long"):
        JsonLines(path, max_line_bytes=1 << 20)


def test_a_line_at_the_limit_passes_whatever_its_end(tmp_path: Path) -> None:
    line = b'{"text": "abc"}'
    for end in (b"\n", b"\r\n", b""):
        path = write(tmp_path / "a.jsonl", line + end)
        assert len(JsonLines(path, max_line_bytes=len(line))) == 1
        with pytest.raises(DataError, match="too long"):
            JsonLines(path, max_line_bytes=len(line) - 1)


def test_files_without_rows(tmp_path: Path) -> None:
    for data in (b"", b"\n \n", b"\xef\xbb\xbf"):
        for reader in (JsonLines, TextLines):
            with pytest.raises(DataError, match="no row in"):
                reader(write(tmp_path / "a.jsonl", data))
    with pytest.raises(DataError, match="2 x not valid JSON"):
        JsonLines(write(tmp_path / "a.jsonl", b"x\ny\n"), on_error="skip")


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    reader = JsonLines(path)
    write(path, b'{"text": "a"}\n')
    with pytest.raises(DataError, match="no longer there"):
        reader.read(1)
    path.unlink()
    with pytest.raises(DataError, match=r"can't read .*a\.jsonl:1"):
        reader.read(0)


def test_labels_boxes_and_other_names(tmp_path: Path) -> None:
    rows = [
        {"sentence": "x", "label": "10", "index": 7},
        {"sentence": "y", "label": "9", "boxes": [[0, 0, 2, 3]], "box_labels": ["9"]},
        {"sentence": "z", "label": "9", "boxes": []},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    reader = JsonLines(path, rename={"sentence": "text"})
    assert reader.class_names == ("9", "10")
    first, second, third = records_of(reader)
    assert first == {"text": "x", "label": 1}
    assert torch.equal(second["boxes"], torch.tensor([[0.0, 0.0, 2.0, 3.0]])) and second["box_labels"].tolist() == [0]
    assert third["boxes"].shape == (0, 4) and third["box_labels"].dtype == torch.int64
    with pytest.raises(DataError, match=":1: unknown class"):
        JsonLines(path, class_names=("9",))
    assert len(JsonLines(path, class_names=("9",), on_error="skip")) == 2
    with pytest.raises(DataError, match="two keys one name"):
        JsonLines(path, rename={"sentence": "label"})
    for wrong in ({"on_error": "stop"}, {"media": "film"}, {"max_line_bytes": 0}):
        with pytest.raises(ConfigError):
            JsonLines(path, **wrong)  # type: ignore[arg-type]


def test_the_files_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, f'{{"text": "{name}"}}\n'.encode())
    write(tmp_path / "readme.md", b"what this is\n")
    reader = open_reader(tmp_path)
    assert [reader.read(row)["text"] for row in range(2)] == ["a.jsonl", "b.jsonl"]


def test_text_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\n two \nthree")
    reader = TextLines(path)
    assert [record["text"] for record in records_of(reader)] == ["one", " two ", "three"]
    for line, problem in ((b"a\0b", "NUL"), (b"\xff", "UTF-8")):
        bad = write(tmp_path / "b.txt", b"fine\n" + line + b"\n")
        with pytest.raises(DataError, match=rf"b\.txt:2: .*{problem}"):
            TextLines(bad)
        assert len(TextLines(bad, on_error="skip")) == 1


_CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@given(st.lists(st.lists(_CELLS, min_size=3, max_size=3), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tables_give_the_cells_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["u", "v", "w"], ["x", "y", "z"], *rows])
    reader = CsvTable(path, header=True, delimiter=",")
    kinds = [type(reader.read(0)[name]) for name in ("u", "v", "w")]
    assert kinds == [str] * 3
    assert [[record[name] for name in ("u", "v", "w")] for record in records_of(reader)][1:] == rows


def test_columns_have_one_type_each(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"id,size,name,label\n1,1,x,yes\n2,1.5,3,no\n-3,2e3,,yes\n")
    reader = open_reader(path)
    assert isinstance(reader, CsvTable) and reader.class_names == ("no", "yes")
    assert records_of(reader) == [
        {"id": 1, "size": 1.0, "name": "x", "label": 1},
        {"id": 2, "size": 1.5, "name": "3", "label": 0},
        {"id": -3, "size": 2000.0, "name": "", "label": 1},
    ]
    assert pickle.loads(pickle.dumps(reader)).read(2) == reader.read(2)
    with pytest.raises(IndexError):
        reader.read(3)


def test_numbers_that_are_text_and_cells_that_are_empty(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", b"post,age,big,under,plus,label\n01234,,1,1_0,+1,a\n10115,3,12345678901234567890,2,2,b\n"
    )
    first, second = records_of(CsvTable(path))
    assert first["post"] == "01234" and first["under"] == "1_0" and second["age"] == 3.0 and math.isnan(first["age"])
    assert first["big"] == 1.0 and first["plus"] == 1.0
    write(path, path.read_bytes() + b"1,2,3,4,5,\n")
    with pytest.raises(DataError, match=":4: no label"):
        CsvTable(path)


def test_headers_are_found_or_given(tmp_path: Path) -> None:
    assert CsvTable(write(tmp_path / "a.csv", b"1,2\n3,4\n")).columns == ("column_0", "column_1")
    assert CsvTable(write(tmp_path / "b.csv", b"u,v\n3,4\n")).columns == ("u", "v")
    assert len(CsvTable(write(tmp_path / "c.csv", b"u,v\nw,x\n"))) == 2
    assert len(CsvTable(tmp_path / "c.csv", header=True)) == 1
    assert CsvTable(write(tmp_path / "d.tsv", b"a,b\t1\nc\t2\n")).read(0)["column_0"] == "a,b"
    named = CsvTable(tmp_path / "a.csv", columns=("label", "words"))
    assert named.read(1) == {"label": 3, "text": "4", "path": str(tmp_path / "a.csv")}
    for wrong in ({"columns": ("a",)}, {"label": "q"}, {"text": "q"}, {"delimiter": ",,"}, {"encoding": "utf-16"}):
        with pytest.raises(ConfigError):
            CsvTable(tmp_path / "a.csv", **wrong)  # type: ignore[arg-type]


def test_chinese_of_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "label,text\n1,你好\n".encode("gb18030"))
    assert CsvTable(path, encoding="gb18030").read(0)["text"] == "你好"
    with pytest.raises(DataError, match=":2: not valid utf-8"):
        CsvTable(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,a,b", "another number of cells"),
        (b"1", "another number of cells"),
        (b'1,"a"b', "not valid CSV"),
        (b"1,a\0", "NUL bytes"),
        (b"1,\xff", "not valid utf-8"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path: Path, row: bytes, reason: str) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbflabel,text\r\n1,first\r\n" + row + b'\r\n0,"la\r\nst"')
    with pytest.raises(DataError, match=rf"a\.csv:3: {reason}"):
        CsvTable(path)
    reader = CsvTable(path, on_error="skip")
    assert records_of(reader) == [{"label": 1, "text": "first"}, {"label": 0, "text": "la\r\nst"}]
    assert reader.report.reasons == {reason: 1}


def test_a_quote_without_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'label,text\n1,a\n0,"never closed\n' + b"1,more\n" * 3)
    with pytest.raises(DataError, match=r"a\.csv:3: not valid CSV"):
        CsvTable(path)
    assert len(CsvTable(path, on_error="skip")) == 1


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"label,text\n1,a\n")
    write(tmp_path / "b.csv", b"label,text\n0,b\n")
    assert len(open_reader(tmp_path)) == 2
    write(tmp_path / "c.csv", b"label,text,more\n0,b,c\n")
    with pytest.raises(DataError, match="different columns") as caught:
        open_reader(tmp_path)
    assert "a.csv" in str(caught.value) and "c.csv" in str(caught.value)
