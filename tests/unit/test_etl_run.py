"""Runs: counts, bad rows and their policy, dedup, split and shuffle against plain Python, workers, progress."""

from __future__ import annotations

import collections
import datetime
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepseek.data.etl.exchange as exchange
import deepseek.data.etl.run as run_module
from deepseek.data.etl import DataPipeline, Progress
from deepseek.data.etl.rows import key_getter, pack, unpack
from deepseek.data.record_forms import BadRecord
from deepseek.errors import ConfigError, DataError


def source(folder: Path, rows: list[dict], block: int = 500) -> DataPipeline:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataPipeline.read(folder / "in.jsonl", "jsonl", block_bytes=block)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(out.glob("part-*.jsonl")) for line in path.read_bytes().splitlines()]


def numbered(count: int) -> list[dict]:
    drawn = random.Random(count)
    return [{"id": number, "text": f"t{drawn.randrange(count)}", "group": number // 7} for number in range(count)]


def halved(row: dict) -> dict:
    return {**row, "half": 10 // (row["id"] % 5)}


def even(row: dict) -> bool:
    return row["half"] % 2 == 0


def copies(row: dict):
    for number in range(row["id"] % 3):
        yield {**row, "copy": number}


def test_steps_do_and_count_what_a_loop_does(tmp_path: Path) -> None:
    rows = numbered(300)
    plan = source(tmp_path, rows).map(halved).filter(even).flat_map(copies).write(tmp_path / "out")
    report = plan.run(workers=1, bad_rows=tmp_path / "bad.jsonl")
    good = [{**row, "half": 10 // (row["id"] % 5)} for row in rows if row["id"] % 5]
    kept = [row for row in good if row["half"] % 2 == 0]
    expected = [{**row, "copy": number} for row in kept for number in range(row["id"] % 3)]
    assert rows_of(tmp_path / "out") == expected
    assert [(step.rows_in, step.rows_out, step.bad) for step in report.steps] == [
        (300, 300, 0),
        (300, len(good), 60),
        (len(good), len(kept), 0),
        (len(kept), len(expected), 0),
        (len(expected), len(expected), 0),
    ]
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["line"] for entry in bad] == list(range(1, 301, 5))
    assert {entry["step"] for entry in bad} == {"2. map(halved)"} and bad[1]["row"].startswith("id=5, text=")
    assert report.reasons == {"ZeroDivisionError": 60} and report.bytes_read == (tmp_path / "in.jsonl").stat().st_size
    assert "2. map(halved)" in str(report) and "60 x ZeroDivisionError" in str(report)
    assert plan.run(workers=1, bad_rows=tmp_path / "bad.jsonl") == report, "a finished run is not done again"


def test_the_first_bad_row_ends_a_run_unless_they_are_collected(tmp_path: Path) -> None:
    plan = source(tmp_path, numbered(300)[1:]).map(halved).write(tmp_path / "out")
    with pytest.raises(DataError, match=r"in\.jsonl:5: ZeroDivisionError \(step 2\. map\(halved\)\)") as caught:
        plan.run(workers=1)
    assert "id=5" in str(caught.value) and "bad_rows" in str(caught.value)
    with pytest.raises(DataError, match="too many bad rows"):
        plan.run(workers=1, bad_rows=tmp_path / "bad.jsonl", max_bad_share=0.1)
    assert (tmp_path / "bad.jsonl").read_bytes().count(b"\n") == 59
    report = plan.run(workers=1, bad_rows=tmp_path / "bad.jsonl", max_bad_share=0.2)
    assert report.bad == 59 and report.resumed_blocks == report.blocks


@pytest.mark.parametrize("result", [None, "text", [1]])
def test_functions_have_to_return_rows(tmp_path: Path, result: object) -> None:
    read = source(tmp_path, numbered(3))
    with pytest.raises(DataError, match="has to be a dict"):
        read.map(lambda row: result).write(tmp_path / "a").run(workers=1)
    with pytest.raises(DataError, match="flat_map|dict|TypeError"):
        read.flat_map(lambda row: result).write(tmp_path / "b").run(workers=1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 5))
def test_dedup_keeps_the_first_of_each_in_order(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("dedup")
    rows = [{"key": key, "id": number} for number, key in enumerate(keys)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "ROWS_OF_PART", at_once)
        source(folder, rows, 64).dedup("key").write(folder / "out").run(workers=1)
    first = {row["key"]: row for row in reversed(rows)}
    assert rows_of(folder / "out") == [row for row in rows if first[row["key"]] is row]


def test_dedup_tells_values_and_types_apart(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": [1, {"x": 2, "y": 3}]}, {"b": [1, {"y": 3, "x": 2}], "a": 1}, {"a": "1", "b": None}]
    read = source(tmp_path, [*rows, {"a": True, "b": None}, {"a": 1.5, "b": 0}])
    read.dedup().write(tmp_path / "all").run(workers=1)
    assert len(rows_of(tmp_path / "all")) == 4
    read.dedup(["b"]).write(tmp_path / "b").run(workers=1)
    assert len(rows_of(tmp_path / "b")) == 3
    with pytest.raises(DataError, match="no column 'c'"):
        read.dedup("c").write(tmp_path / "c").run(workers=1)


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_dedup_finds_texts_that_are_nearly_equal(tmp_path: Path, method: str) -> None:
    drawn = random.Random(0)
    words = [f"w{number}" for number in range(500)]
    texts = [" ".join(drawn.choices(words, k=60)) for _ in range(40)]
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    rows += [{"id": 100 + number, "text": text + " more"} for number, text in enumerate(texts)]
    read = source(tmp_path, rows, 3000)
    read.dedup("text", method).write(tmp_path / "out").run(workers=1)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(40))
    with pytest.raises(DataError, match="no text in the column 'id'"):
        read.dedup("id", method).write(tmp_path / "no").run(workers=1)


def test_split_keeps_groups_together_and_rows_where_they_are(tmp_path: Path) -> None:
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    sides: list[dict[int, str]] = []
    for count in (2000, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        report = source(folder, numbered(count), 20_000).split(shares, by="group").write(folder / "out").run(workers=1)
        found: dict[int, str] = {}
        for name in shares:
            rows = rows_of(folder / "out" / name)
            assert len(rows) == report.rows_of_split[name]
            for row in rows:
                assert found.setdefault(row["group"], name) == name
        assert sum(report.rows_of_split.values()) == count
        sides.append(found)
    assert sides[0].items() <= sides[1].items(), "data that is added moves no row"
    groups = collections.Counter(sides[1].values())
    for name, share in shares.items():
        deviation = (share * (1 - share) * len(sides[1])) ** 0.5
        assert abs(groups[name] - share * len(sides[1])) < 4 * deviation


def test_shuffle_is_a_permutation_that_depends_on_the_seed_alone(tmp_path: Path) -> None:
    rows = numbered(2000)
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        read = source(tmp_path, rows, 4000)
        read.shuffle(seed).write(tmp_path / name).run(workers=1)
        found = rows_of(tmp_path / name)
        assert sorted(found, key=lambda row: row["id"]) == rows
        orders.append([row["id"] for row in found])
    assert orders[0] == orders[1] != orders[2]
    assert abs(np.corrcoef(orders[0], range(2000))[0, 1]) < 0.1
    neighbours = np.abs(np.diff(orders[0]))
    assert 500 < neighbours.mean() < 850  # 2000 / 3 of a random order


def test_workers_change_nothing_and_lambdas_travel_where_they_can(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    base = source(tmp_path, numbered(200)).map(lambda row: {**row, "n": 1}).dedup("text").shuffle(3)
    seen: list[Progress] = []
    base.write(tmp_path / "one").run(workers=1)
    report = base.write(tmp_path / "two").run(workers=2, progress=seen.append)
    for path in (tmp_path / "one").glob("part-*"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert len(report.files) == len(list((tmp_path / "one").glob("part-*")))
    assert [one.stage for one in seen] == sorted(one.stage for one in seen)
    assert (seen[-1].blocks_done, seen[-1].rows_written) == (seen[-1].blocks, report.rows_written)


def test_an_error_in_a_worker_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'none'"):
        source(tmp_path, numbered(200)).dedup("none").write(tmp_path / "out").run(workers=2)
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"step 2, map\(.*lambda.*can't be sent to another process"):
        read = source(tmp_path, numbered(200))
        read.map(lambda row: {**row, "f": lock.locked()}).write(tmp_path / "no").run(workers=2)


def test_a_shuffle_of_many_parts_and_no_rows_at_all(tmp_path: Path) -> None:
    read = source(tmp_path, numbered(300), 150)
    report = read.shuffle().write(tmp_path / "many").run(workers=1)
    assert len(report.files) == 64
    none = read.filter(lambda row: False).dedup().shuffle().write(tmp_path / "none").run(workers=1)
    assert (none.rows_written, none.files) == (0, [])
    (tmp_path / "empty.jsonl").touch()
    empty = DataPipeline.read(tmp_path / "empty.jsonl").dedup().shuffle().write(tmp_path / "empty")
    assert empty.run(workers=1).rows_read == 0


def test_parts_partition_the_range_of_keys() -> None:
    keys = np.sort(np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64))
    keys[0], keys[-1] = 0, 2**64 - 1
    for parts in (1, 2, 3, 7, 1000):
        bounds = [exchange._slice(keys, part, parts) for part in range(parts)]
        assert bounds[0][0] == 0 and bounds[-1][1] == 1000
        assert all(before[1] == after[0] for before, after in zip(bounds, bounds[1:], strict=False))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_rows_that_wait_come_back_as_they_were(row: dict) -> None:
    assert unpack(pack((1, 2, "s", row))) == (1, 2, "s", row)


def test_arrays_and_dates_can_wait_and_objects_can_not() -> None:
    row = {"a": np.arange(6, dtype=np.int16).reshape(2, 3).T, "s": np.float32(1.5), "d": datetime.datetime(2020, 1, 1)}
    back = unpack(pack((0, 0, "", row)))[3]
    assert np.array_equal(back["a"], row["a"]) and back["a"].dtype == np.int16 and back["a"].flags.writeable
    assert back["s"] == 1.5 and back["d"] == row["d"]
    for value in (object(), Path("x"), print, np.array([None], dtype=object)):
        with pytest.raises(BadRecord):
            pack((0, 0, "", {"x": value}))
    key = key_getter(("a",))
    assert key({"a": np.arange(3)}) == key({"a": np.arange(3)}) != key({"a": np.arange(3, dtype=np.int32)})


def test_bytes_that_would_run_code_are_refused() -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    for data in (pickle.dumps(Evil()), pickle.dumps(Path), b"", b"\x80\x05.", b"garbage", pickle.dumps(3)):
        with pytest.raises(ValueError):
            unpack(data)
