"""README and manual are true: their samples run, their commands exist, and both languages say the same.

Convention: the ```python blocks of a page run in order, in one namespace, in a folder with `my.txt`, `my.jsonl` and the
run `runs/quickstart`. A block below a comment `<!-- not run: why -->` is only compiled.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from deepseek.cli.app import app
from deepseek.cli.serve import serve_command
from tests.contract.source_tree import ROOT

ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs" / "en").glob("*.md"))]
PAGES = [*ENGLISH, ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
NEEDS = {"compress": "torch_pruning", "export": "onnxruntime", "quickstart": "onnxruntime", "serving": "uvicorn"}
FENCE = re.compile(
    r"^(?P<before><!-- not run: .+ -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    run: bool
    line: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], found["before"] is None, text.count("\n", 0, found.start("code")))
        for found in FENCE.finditer(text)
    ]


def twin(page: Path) -> Path:
    return ROOT / "README.zh.md" if page.name == "README.md" else ROOT / "docs" / "zh" / page.name


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with what the samples take for granted; torch works with one thread meanwhile."""
    import torch

    import deepseek as ds
    from deepseek.data import Tokenizer, python_corpus

    folder = tmp_path_factory.mktemp("desk")
    texts = list(itertools.islice(python_corpus(), 12))
    (folder / "my.txt").write_text("\n\n".join(texts), encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in texts[:3]]
    (folder / "my.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(texts, 512)
    model = ds.GPT(ds.GPTConfig(vocab_size=512, max_length=128, num_layers=1, d_model=32))
    (folder / "runs" / "quickstart").mkdir(parents=True)
    ds.save(model, folder / "runs" / "quickstart" / "bundle", tokenizer=tokenizer)
    yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_python_samples_run_in_order(page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
    here = tmp_path / "here"
    shutil.copytree(desk, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # toy sizes: more threads only wait for each other
    names: dict[str, Any] = {"__name__": "sample"}
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * block.line + block.code, name_of(page), "exec", dont_inherit=True)
            if block.run:
                exec(code, names)


def command_lines(page: Path) -> Iterator[list[str]]:
    for block in blocks(page):
        if block.language == "bash":
            for line in block.code.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in {"deepseek", "deepseek-serve"}:
                    yield words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    serve = typer.Typer()
    serve.command()(serve_command)
    group: Any = typer.main.get_command(app)
    for words in command_lines(page):
        if words[0] == "deepseek-serve":
            typer.main.get_command(serve).make_context(words[0], words[1:])
            continue
        assert words[1] in group.commands, f"unknown command: {shlex.join(words)}"
        group.commands[words[1]].make_context(words[1], words[2:])
    named = re.findall(r"`deepseek ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(group.commands)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_both_languages_have_the_same_headings_code_and_tables(page: Path) -> None:
    def shape(path: Path) -> tuple[list[str], list[tuple[str, str, bool]], int]:
        prose = FENCE.sub("", path.read_text(encoding="utf-8"))
        levels = re.findall(r"^#+(?= )", prose, re.MULTILINE)
        code = [(block.language, block.code, block.run) for block in blocks(path)]
        return levels, code, len(re.findall(r"^\|", prose, re.MULTILINE))

    assert shape(page) == shape(twin(page))


def test_the_manual_names_every_command_and_every_error() -> None:
    from deepseek import errors

    group: Any = typer.main.get_command(app)
    commands = (ROOT / "docs" / "en" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in group.commands if f"deepseek {name}" not in commands] == []
    page = (ROOT / "docs" / "en" / "errors.md").read_text(encoding="utf-8")
    tree = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert [name for name in tree if name not in page] == []


def test_navigation_lists_every_page() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    there = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(there)
