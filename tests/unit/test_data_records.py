"""Reading documents: the forms of a record, and everything that can be wrong with a file or a line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data import records
from deepseek.data.record_forms import BadRecord, parse_line
from deepseek.data.records import PIECE_CHARACTERS, Document, ReadReport, cut_point, read_documents
from deepseek.errors import ConfigError, DataError


def lines(path: Path, *rows: bytes | dict) -> Path:
    path.write_bytes(b"".join((json.dumps(row).encode() if isinstance(row, dict) else row) + b"\n" for row in rows))
    return path


def read(source: Path, **options: object) -> list[Document]:
    return list(read_documents(source, **options))


def test_the_three_forms_of_a_record(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": ""}]
    path = lines(
        tmp_path / "a.jsonl", {"text": "深度 🙂", "id": 7}, {"prompt": "p", "response": "r"}, b"", {"messages": chat}
    )
    found = read(path)
    assert [document.line for document in found] == [1, 2, 4]
    assert found[0] == Document("深度 🙂", str(path), 1)
    assert found[1].messages == (("user", "p"), ("assistant", "r"))
    assert found[2].messages == (("system", "s"), ("user", "u"), ("assistant", ""))


BAD_LINES = {
    "bad UTF-8": (b'{"text": "\xff"}', "not valid UTF-8"),
    "NUL": (b'{"text": "a\x00b"}', "NUL bytes"),
    "cut short": (b'{"text": "a', "not valid JSON"),
    "a list": (b'["text"]', "not a JSON object: found list"),
    "a number": (b"12", "not a JSON object: found int"),
    "no text": (b'{"title": "x"}', "found keys 'title'"),
    "no keys": (b"{}", "found keys none"),
    "half a pair": (b'{"prompt": "x"}', "no text field"),
    "text is a number": (b'{"text": 5}', "'text' is int; wanted text"),
    "text is null": (b'{"text": null}', "'text' is NoneType"),
    "two forms": (b'{"text": "a", "prompt": "b", "response": "c"}', "text and prompt/response"),
    "empty response": (b'{"prompt": "a", "response": ""}', "empty response"),
    "unknown role": (b'{"messages": [{"role": "tool", "content": "x"}]}', "messages[0] has 'tool'; wanted system"),
    "role is a list": (b'{"messages": [{"role": [], "content": "x"}]}', "unknown role"),
    "no messages": (b'{"messages": []}', "at least one message"),
    "message is text": (b'{"messages": ["hi"]}', "messages[0] is not an object"),
    "content is parts": (b'{"messages": [{"role": "user", "content": []}]}', "messages[0].content' is list"),
    "nothing to learn": (b'{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
    "lone surrogate": (b'{"text": "ab\\ud83d"}', "lone surrogate: 'text', character 3"),
    "depth bomb": (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    "digit bomb": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_corrupt_line_is_named_or_skipped_and_counted(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_LINES[name]
    path = lines(tmp_path / "a.jsonl", {"text": "first"}, bad, {"text": "last"})
    documents = read_documents(path)
    assert next(documents).text == "first"
    with pytest.raises(DataError) as caught:
        next(documents)
    assert f"{path}:2: " in str(caught.value)
    assert reason in str(caught.value)
    assert "on_error='skip'" in str(caught.value)

    report = ReadReport()
    assert [document.text for document in read(path, on_error="skip", report=report)] == ["first", "last"]
    assert (report.documents, report.skipped, sum(report.reasons.values())) == (2, 1, 1)
    assert reason in report.examples[0]


PARTS = [
    b'{"text": "a"}',
    b'{"text": "\\ud83d\\ude42 \xe6\xb7\xb1"}',
    b'{"text": "\\ud83d"}',
    b'{"text": " "}',
    b"",
    b" ",
    b"\r",
]
PARTS += [
    b'{"text": "b", "n": 1}',
    b'{"text": "b", "prompt": "p"}',
    b'{"prompt": "p", "response": "r"}',
    b"\xe3\x80\x80",
]
PARTS += [
    b'{"text": "c"} ',
    b'{"text": "c"}\xe3\x80\x80',
    b'{"text": "c"}\x0b',
    b' {"text": "d"}\r',
    b'{"text": "e"},',
    b'{"text": "f"',
]
PARTS += [
    b'"n": 1}',
    b"1",
    b"[",
    b"\xff",
    b"\0",
    b'{"text": "' + b"x" * 40 + b'"}',
    b'{"text": "\\u0000"}',
    b'{"text": null}',
]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=12), st.integers(8, 50), st.booleans(), st.booleans())
def test_blocks_of_lines_are_read_as_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], block: int, short: bool, ended: bool
) -> None:
    limit = 30 if short else 1 << 20
    expected: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            if len(row) > limit:
                raise BadRecord("line too long", f"more than {limit} bytes")
            record = parse_line(row) if row.strip() else None
        except BadRecord as bad:
            expected.append(f"{number}: {bad.reason}")
            continue
        if record is not None and (record.messages or record.text.strip()):
            expected.append(f"{number}= {record.text}{record.messages}")
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(b"\n".join(rows) + (b"\n" if ended else b""))
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch, open(path, "rb") as handle:
        patch.setattr(records, "_BLOCK", block)
        patch.setattr(
            records, "_reject", lambda where, bad, *_: found.append(f"{where.rpartition(':')[2]}: {bad.reason}")
        )
        for document in records._read_jsonl(path, handle, "skip", limit, ReadReport()):
            found.append(f"{document.line}= {document.text}{document.messages}")
    assert sorted(found) == sorted(expected)


def test_a_repeated_key_counts_as_its_last_value(tmp_path: Path) -> None:
    assert read(lines(tmp_path / "a.jsonl", b'{"text": "a", "text": "b"}'))[0].text == "b"


def test_an_escaped_nul_is_text(tmp_path: Path) -> None:
    assert read(lines(tmp_path / "a.jsonl", b'{"text": "a\\u0000b"}'))[0].text == "a\0b"


def test_bom_crlf_and_a_missing_last_newline_in_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n\r\n{"text": "b"}')
    assert [(document.text, document.line) for document in read(path)] == [("a\r\n", 1), ("b", 3)]


def test_bom_and_line_ends_in_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\nd")
    assert read(path) == [Document("a\nb\nc\nd", str(path), 1)]


def test_bad_utf8_in_a_text_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(DataError, match=r"a\.txt:3: not valid UTF-8"):
        read(path)


def test_a_character_cut_by_the_end_of_the_file_is_bad_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("深".encode()[:2])
    with pytest.raises(DataError, match="not valid UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\x7fELF\x00\x01", "binary data"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip data"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), "gzip data"),
        ("a.zip", b"PK\x03\x04....", "zip archive"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_unusable_file_is_refused_at_once(
    tmp_path: Path, name: str, content: bytes, message: str, on_error: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / name, on_error=on_error)


def test_a_late_nul_in_a_text_file_is_binary(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text " * 5000 + b"\0")
    with pytest.raises(DataError, match="binary"):
        read(path)


def test_a_missing_file_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read"):
        read_documents(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_documents("/dev/zero")


@pytest.mark.parametrize(("name", "content"), [("a.txt", b" \n\t\n"), ("a.jsonl", b'\n{"text": " "}\n\n')])
def test_white_space_alone_is_no_document(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="only empty records"):
        read(tmp_path / name)


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", b"{", b"[", b'{"text": 1}')
    with pytest.raises(DataError, match="2 x not valid JSON, 1 x field of the wrong type"):
        read(path, on_error="skip")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(ConfigError, match="'raise' or 'skip'"):
        read_documents(path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_line_bytes"):
        read_documents(path, max_line_bytes=0)


def test_a_folder_is_read_in_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "z.txt").write_text("z")
    (tmp_path / "b" / "README").write_text("readme")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    lines(tmp_path / "a.jsonl", {"text": "a1"}, {"text": "a2"})
    report = ReadReport()
    assert [document.text for document in read(tmp_path, report=report)] == ["a1", "a2", "readme", "z"]
    assert (report.files, report.documents, report.ignored_files, report.empty) == (4, 4, 1, 1)
    assert report.characters == len("a1a2readmez")
    assert report.bytes_read == sum((tmp_path / name).stat().st_size for name in ("a.jsonl", "b/README", "z.txt"))


def test_a_bad_file_in_a_folder_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0\1\2")
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b"{}", mtime=0))
    (tmp_path / "c.txt").write_text("good")
    with pytest.raises(DataError, match=r"a\.txt: NUL bytes"):
        read(tmp_path)
    report = ReadReport()
    assert [document.text for document in read(tmp_path, on_error="skip", report=report)] == ["good"]
    assert report.reasons == {"NUL bytes: binary data": 1, "not plain text": 1}


def test_a_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files"):
        read_documents(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "b.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"2 other files \(\.bin, \.png\)"):
        read_documents(tmp_path)


def test_link_loops_in_folders_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [document.text for document in read(tmp_path)] == ["x"]


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a"})
    path.chmod(0)
    with pytest.raises(DataError, match="permissions"):
        read_documents(path)


def test_a_line_over_the_limit_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a" * 100}, {"text": "b"}, {"text": "c" * 100})
    report = ReadReport()
    assert [document.text for document in read(path, on_error="skip", max_line_bytes=50, report=report)] == ["b"]
    assert report.reasons == {"line too long": 2}
    with pytest.raises(DataError, match=":1: line too long: more than 50 bytes"):
        read(path, max_line_bytes=50)


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = b'{"text": "abc"}'
    for content in (row, row + b"\n" + row):
        path.write_bytes(content)
        assert len(read(path, max_line_bytes=len(row))) == content.count(row)


def test_a_long_text_file_comes_in_pieces_that_join_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {number} of a long file\n" for number in range(100_000))
    path.write_text(text)
    report = ReadReport()
    pieces = read(path, report=report)
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) > 2 and all(0 < len(piece.text) < PIECE_CHARACTERS for piece in pieces)
    assert [piece.continues for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert (report.documents, report.characters) == (1, len(text))
    assert pieces[1].line == pieces[0].text.count("\n") + 1


@given(st.text(alphabet="ab1 \n-", max_size=60), st.integers(0, 10), st.integers(1, 20))
def test_a_cut_is_within_the_limit_and_at_the_end_of_a_word(text: str, start: int, limit: int) -> None:
    end = cut_point(text, start, limit)
    if len(text) <= start + limit:
        assert end == len(text)
    else:
        assert start < end <= start + limit
        assert end == start + limit or (text[end - 1].isalnum() and text[end] in " \n")


MEMORY = """
import resource, sys
from pathlib import Path
from deepseek.data.records import read_documents, ReadReport
from deepseek.errors import DataError
folder, report = Path(sys.argv[1]), ReadReport()
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(document.text) for document in read_documents(folder / "a.txt")) == 100_000_000
texts = [d.text for d in read_documents(folder / "b.jsonl", on_error="skip", max_line_bytes=1 << 20, report=report)]
assert texts == ["end"] and report.reasons == {"line too long": 1}, report
try:
    list(read_documents(folder / "c.txt"))
except DataError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * (1 if sys.platform == "darwin" else 1024))
"""


def test_files_of_one_100_mb_line_take_little_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as handle:
        for _ in range(100):
            handle.write(b"x" * 1_000_000)
    for name in ("b.jsonl", "c.txt"):  # holes: no blocks on disk
        with open(tmp_path / name, "wb") as handle:
            handle.write(b'{"text": "')
            handle.truncate(100_000_000)
            handle.seek(0, os.SEEK_END)
            handle.write(b'\n{"text": "end"}\n')
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 * 1024 * 1024
