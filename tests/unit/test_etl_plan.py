"""A plan: how it prints, what it refuses before anything runs, and when a function counts as changed."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deepseek.data.etl import DataPipeline
from deepseek.data.etl.fingerprint import fingerprint
from deepseek.errors import ConfigError, DataError
from tests.system import child_environment


def keep(row: dict) -> dict:
    return row


def written(folder: Path, name: str = "in.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text('{"text": "one"}\n', encoding="utf-8")
    return str(folder / name)


def test_it_prints_as_its_steps() -> None:
    plan = DataPipeline.read("in/*.jsonl").map(keep).dedup("text", "simhash").split({"a": 0.5, "b": 0.5}).shuffle(1)
    assert repr(plan.write("out", format="csv")).splitlines() == [
        "DataPipeline",
        "  1. read('in/*.jsonl')",
        "  2. map(keep)",
        "  3. dedup(key='text', method='simhash', threshold=0.7)",
        "  4. split({'a': 0.5, 'b': 0.5}, by=None, seed=0)",
        "  5. shuffle(seed=1)",
        "  6. write('out', format='csv')",
    ]
    assert len(plan.steps) == 4, "a longer plan leaves the shorter one as it is"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda plan: plan.map("text"), "map takes a function"),
        (lambda plan: plan.filter(None), "filter takes a function"),
        (lambda plan: plan.flat_map(3), "flat_map takes a function"),
        (lambda plan: plan.dedup(3), "not iterable"),
        (lambda plan: plan.dedup("text", method="fuzzy"), "unknown method"),
        (lambda plan: plan.dedup(method="simhash"), "one column"),
        (lambda plan: plan.dedup("text", method="minhash", threshold=0), "threshold"),
        (lambda plan: plan.split({"train": 0.9}), "add up to 1"),
        (lambda plan: plan.split({"../x": 1.0}), "a folder"),
        (lambda plan: plan.split({"a": 1.5, "b": -0.5}), "out of range"),
        (lambda plan: plan.split({"a": 1.0}).split({"a": 1.0}), "one split"),
        (lambda plan: plan.shuffle(seed=-1), "seed"),
        (lambda plan: plan.write("o", format="xml"), "unknown format"),
        (lambda plan: plan.write("o", format="text", columns=["a"]), "no effect"),
        (lambda plan: plan.write("o", columns={"a": "int64"}), "for parquet"),
        (lambda plan: plan.write("o", columns=["a", "a"]), "twice"),
        (lambda plan: plan.write("o").write("p"), "one write"),
        (lambda plan: plan.write("o").map(keep), "last step"),
        (lambda plan: plan.run(), "writes nothing"),
        (lambda plan: plan.write("o").run("spark"), "unknown engine"),
        (lambda plan: plan.write("o").run(workers=0), "workers"),
        (lambda plan: plan.write("o").run(max_bad_share=0.1), "no effect"),
        (lambda plan: plan.write("o", "parquet", columns={"a": "no"}).run(), "unknown type"),
        (lambda _: DataPipeline.read([]), "read takes paths"),
        (lambda _: DataPipeline.read("x", "pdf"), "unknown format"),
        (lambda _: DataPipeline.read("x", block_bytes=0), "block_bytes"),
        (lambda _: DataPipeline.read("x", delimiter=",,"), "one character"),
        (lambda _: DataPipeline.read("x", encoding="utf-16"), "encoding"),
    ],
)
def test_what_can_not_be_right_is_refused_at_once(tmp_path: Path, make, says: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises((ConfigError, TypeError), match=says):
        make(DataPipeline.read(written(tmp_path / "in")))


def test_output_and_input_stay_apart(tmp_path: Path) -> None:
    source = written(tmp_path / "in")
    cases = [
        (str(tmp_path / "in"), tmp_path / "in"),
        (str(tmp_path / "in"), tmp_path / "in" / "out"),
        (source, tmp_path / "in"),
        (source, tmp_path),
        (source, Path(source)),
    ]
    for given, out in cases:
        with pytest.raises(ConfigError, match="folder"):
            DataPipeline.read(given).write(out).run(workers=1)
    with pytest.raises(ConfigError, match="bad_rows"):
        DataPipeline.read(source).write(tmp_path / "out").run(workers=1, bad_rows=source)
    assert Path(source).read_text(encoding="utf-8") == '{"text": "one"}\n'
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="not empty"):
            DataPipeline.read(source).write(tmp_path / "mine").run(workers=1, resume=resume)
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_missing_and_unusable_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04aaaa")
    written(tmp_path / "mixed")
    (tmp_path / "mixed" / "b.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for given, says in (
        ("none.jsonl", "can't read"),
        ("*.parquet", "no file matches"),
        ("a.zip", "zip"),
        ("mixed", "several formats"),
        ("empty", "is empty"),
    ):
        with pytest.raises(DataError, match=says):
            DataPipeline.read(str(tmp_path / given)).write(tmp_path / "out").run(workers=1)


def _made(body: str):
    space: dict = {"__name__": "made"}
    exec(textwrap.dedent(body), space)
    return space["f"]


def test_a_function_has_changed_when_its_code_or_what_it_uses_has() -> None:
    first = "A = 3\ndef g(x): return x + A\ndef f(row): return g(row['a'])\n"
    same = "# a comment\n\nA = 3\ndef g(x):\n    return x + A\ndef f(row):\n    return g(row['a'])\n"
    assert fingerprint(_made(first)) == fingerprint(_made(same))
    for other in (
        first.replace("A = 3", "A = 4"),
        first.replace("x + A", "x - A"),
        first.replace("'a'", "'b'"),
        first.replace("(row)", "(row, y=1)"),
    ):
        assert fingerprint(_made(other)) != fingerprint(_made(first)), other

    def closing(number: int):
        return lambda row: {**row, "n": number}

    assert fingerprint(closing(1)) == fingerprint(closing(1)) != fingerprint(closing(2))
    assert fingerprint(functools.partial(keep, 1)) != fingerprint(functools.partial(keep, 2))

    @dataclasses.dataclass(frozen=True)
    class Adder:
        by: int

        def __call__(self, row: dict) -> dict:
            return {**row, "by": self.by}

    assert fingerprint(Adder(1)) == fingerprint(Adder(1)) != fingerprint(Adder(2))


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = (
        "from deepseek.data.etl.fingerprint import fingerprint\n"
        "def f(row, names={'b', 'a', 'c'}): return row['x'] in {'u', 'v', 'w', 'y'} and names\n"
        "print(fingerprint(f))"
    )
    seen = set()
    for seed in ("1", "2"):
        environment = child_environment(PYTHONHASHSEED=seed)
        seen.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(seen) == 1
