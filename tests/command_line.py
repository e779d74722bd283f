"""The program `deepseek` for tests: in a process of its own, or in this one; and text to train it on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from deepseek.cli import main

NO_RESTART = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"}
"""Any value keeps the program from restarting itself for huge pages."""

ENGLISH = (
    "the list method returns a copy of each key in order when its value is found and raises an error if not".split()
)
CHINESE = "这个函数返回列表的副本 如果没有找到键 就会引发错误 每个值按顺序保存".split()


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def in_process_of_its_own(folder: Path, *arguments: str, code: str | None = None) -> Finished:
    """Run `deepseek` with `arguments` in `folder`; `code` runs in place of the program, with the same arguments."""
    start = ["-m", "deepseek.cli"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=110,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a program that tests start; what it caches stays below `folder`."""
    root = str(Path(__file__).parents[1])
    own = {"PYTHONPATH": root, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONWARNINGS": "default"}
    return {**os.environ, **NO_RESTART, **own}


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> Finished:
    """Run the program's `main` here."""
    monkeypatch.setattr(sys, "argv", ["deepseek", *map(str, arguments)])
    for name, value in NO_RESTART.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    code = end.value.code
    return Finished(code if isinstance(code, int) else 0 if code is None else 1, said.out, said.err)


def write_text(path: Path, words: int = 12_000) -> Path:
    """Write sentences of few words, always the same ones: JSONL by the suffix, half of it Chinese, else text."""
    chosen = random.Random(0)
    lines = [" ".join(chosen.choices(ENGLISH, k=12)) + "." for _ in range(words // 12)]
    if path.suffix == ".jsonl":
        chinese = ["，".join(chosen.choices(CHINESE, k=4)) + "。" for _ in lines]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in [*lines, *chinese]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
