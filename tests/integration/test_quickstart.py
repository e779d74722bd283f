"""`deepseek quickstart --data`: a user's own text, to the end or to an error that says what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from deepseek.bundle import load
from tests.command_line import in_process_of_its_own, in_this_process, write_text


def test_own_text_becomes_a_served_and_measured_model(tmp_path):
    write_text(tmp_path / "my [bold] text.txt")
    done = in_process_of_its_own(tmp_path, "quickstart", "--data", "my [bold] text.txt", "--minutes", "0.05")
    assert done.code == 0, done.output
    assert "asked " in done.stdout and "heard: " in done.stdout
    run = tmp_path / "runs" / "quickstart"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["source"] == "my [bold] text.txt"
    assert results["serve"]["first_token_ms"] > 0
    assert results["serve"]["question"] == results["samples"][0]["prompt"]
    assert results["seconds"] > results["train"]["seconds"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="serving"' in page
    load(run / "bundle-int8", device="cpu").verify()


def a_few_words(path: Path) -> None:
    path.write_text("only a few words here", encoding="utf-8")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(b"text " * 1000))


def no_utf8(path: Path) -> None:
    path.write_bytes("garçon ".encode("latin-1") * 5000)


def missing(path: Path) -> None:
    pass


def an_empty_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [a_few_words, empty, binary, compressed, no_utf8, missing, an_empty_folder])
def test_a_text_that_can_not_be_used_is_told_and_leaves_nothing(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "my.txt")
    before = sorted(tmp_path.rglob("*"))
    done = in_this_process(monkeypatch, capsys, "quickstart", "--data", "my.txt")
    assert done.code == 1, done.stderr
    assert "my.txt" in done.stderr or make is a_few_words
    assert "wanted:" in done.stderr or "next:" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
