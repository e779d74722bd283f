"""ETL: JSON lines through map, filter and write, against a plain loop, a pool of processes and Ray Data.

Lines per second, from files to files. The text is that of Python's own documentation in lines of about 100 characters.
`loop` is what one writes by hand with `json`, in one process, without checks, restart or sync to disk; `pool` is the
same by `multiprocessing` over parts of the file; `ray` is Ray Data's own `read_json`, `map`, `filter`, `write_json`.
All but the loop may use every core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data_cases.case import OURS, Measure
from deepseek.data import python_corpus
from deepseek.data.etl import DataPipeline

MEASURES = (
    Measure(
        "jsonl",
        "lines/s",
        targets={"ray": 1.0},
        references=("loop", "pool"),
        needs={"ray": "ray"},
        tolerance={"rows": 0.0, "characters": 0.0},
    ),
)
_PARTS = 16


def prepare(folder: Path, quick: bool) -> None:
    """Write the lines."""
    words = " ".join(python_corpus()).split()
    with open(folder / "in.jsonl", "w", encoding="utf-8") as handle:
        for number in range(200_000 if quick else 1_000_000):
            text = " ".join(words[(number * 7 + place) % len(words)] for place in range(15))
            handle.write(json.dumps({"id": number, "text": text, "source": "docs"}) + "\n")


def lengthened(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the length of its text."""
    return {**row, "characters": len(row["text"])}


def long_enough(row: dict[str, Any]) -> bool:
    """Return whether a text is one of the longer ones."""
    return bool(row["characters"] > 90)


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return lines per second of one contestant, and what it wrote."""
    source, out = folder / "in.jsonl", folder / f"out-{contestant}-{os.getpid()}"
    with open(source, "rb") as handle:
        lines = sum(1 for _ in handle)
    once = {OURS: _ours, "loop": _loop, "pool": _pool, "ray": _ray}[contestant]
    times: list[float] = []
    once(source, out)  # warms up the file cache, and Ray
    while sum(times) < (1.0 if quick else 5.0) or len(times) < 2:
        shutil.rmtree(out)
        begin = time.perf_counter()
        once(source, out)
        times.append(time.perf_counter() - begin)
    rows = [json.loads(line) for path in out.rglob("*.json*") if path.name[0] != "_" for line in path.open()]
    shutil.rmtree(out)
    characters = sum(row["characters"] for row in rows)
    return lines / min(times), {"rows": float(len(rows)), "characters": float(characters)}


def _ours(source: Path, out: Path) -> None:
    DataPipeline.read(source).map(lengthened).filter(long_enough).write(out).run()


def _part(source: Path, target: Path, start: int, end: int) -> None:
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb") as lines, open(target, "w", encoding="utf-8") as handle:
        lines.seek(max(0, start - 1))
        place = start
        if start:
            place += len(lines.readline()) - 1
        while place < end and (line := lines.readline()):
            place += len(line)
            row = lengthened(json.loads(line))
            if long_enough(row):
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def _loop(source: Path, out: Path) -> None:
    _part(source, out / "all.jsonl", 0, source.stat().st_size)


def _pool(source: Path, out: Path) -> None:
    size = source.stat().st_size
    cuts = [size * part // _PARTS for part in range(_PARTS + 1)]
    work = [(source, out / f"{part:02d}.jsonl", cuts[part], cuts[part + 1]) for part in range(_PARTS)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(_part, work, chunksize=1)


def _ray(source: Path, out: Path) -> None:
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    data: Any = ray.data.read_json(str(source), override_num_blocks=_PARTS)
    write: Callable[[str], None] = data.map(lengthened).filter(fn=long_enough).write_json
    write(str(out))
