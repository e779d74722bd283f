"""The corpus that comes with Python: enough text, each once, always in the same order."""

import ast
import inspect
import json
import sys
from pathlib import Path

import pytest

from deepseek.data import corpus
from deepseek.data.records import read_documents
from deepseek.errors import DataError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(corpus.python_corpus())


def test_there_is_enough_text_and_each_only_once(texts: list[str]) -> None:
    assert sum(map(len, texts)) > 1_500_000
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= corpus.MIN_CHARACTERS


def test_it_holds_the_reference_and_docstrings_without_indentation(texts: list[str]) -> None:
    known = set(texts)
    assert inspect.cleandoc(json.dumps.__doc__ or "").strip() in known
    assert inspect.cleandoc(ast.walk.__doc__ or "").strip() in known
    assert any('The "for" statement' in text for text in texts)


def test_no_module_is_imported_and_no_warning_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "A text about the module that is long enough to be kept, being of more than eighty characters."
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text(f'"""{text} Not here."""')
    (tmp_path / "b.py").write_text(f'raise SystemExit\nclass A:\n    """{text}\n\n        More."""\n')
    (tmp_path / "a.py").write_text(f'"""{text}"""\nx = "\\d"\ndef f():\n    """{text}"""\n')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "nul.py").write_bytes(b"\0")
    monkeypatch.setattr(corpus, "topics", {})
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    modules = set(sys.modules)
    assert list(corpus.python_corpus()) == [text, f"{text}\n\nMore."]
    assert set(sys.modules) == modules


def test_the_file_reads_back_as_the_corpus(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "python_corpus", lambda: iter(texts))
    assert corpus.write_python_corpus(tmp_path / "c.jsonl") == len(texts)
    assert [document.text for document in read_documents(tmp_path / "c.jsonl")] == texts


def test_a_python_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "topics", {})
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match="without its source"):
        corpus.write_python_corpus(tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()
