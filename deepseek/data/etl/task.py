"""One block of one stage, from its source to its commit: the unit that a process or a Ray worker does.

A task depends on its arguments and on files that stay as they are, and writes under names of its own, so it may run
twice or be killed at any time. Not here: which tasks there are (`run`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from deepseek.data.etl.bad_rows import BadRows
from deepseek.data.etl.exchange import (
    block_folder,
    drops_file,
    find_equal,
    find_similar,
    kept_rows,
    save_drops,
    shuffled_rows,
)
from deepseek.data.etl.inputs import FileBlock, InputFile
from deepseek.data.etl.operators import Counts, operators
from deepseek.data.etl.rows import Record
from deepseek.data.etl.sinks import BlockWriter
from deepseek.data.etl.sources import read_block
from deepseek.data.etl.spill import SpillWriter
from deepseek.data.etl.stages import Stage
from deepseek.data.etl.steps import Read
from deepseek.data.etl.workplace import Workplace
from deepseek.data.record_forms import BadRecord
from deepseek.files import atomic_folder, write_json, write_text

_AT_ONCE = 256
_READ = 1


@dataclass(frozen=True)
class Job:
    """What all tasks of a stage have in common. `blocks` and `parts` are those of the stage before."""

    root: str
    files: tuple[InputFile, ...]
    read: Read
    stage: Stage
    skip: bool
    blocks: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Task:
    """A task of a stage; of the first stage with its part of the input."""

    number: int
    block: FileBlock | None = None


def do_task(job: Job, task: Task) -> dict[str, Any]:
    """Do a task and commit it; return what it did, as plain values. Raises DataError, StorageError."""
    place = Workplace(Path(job.root))
    if job.stage.decide is not None:
        values = _decide(job, task, place)
    else:
        values = _rows(job, task, place)
    write_json(place.result_file(job.stage.number, task.number), values)
    return values


def _decide(job: Job, task: Task, place: Workplace) -> dict[str, Any]:
    stage, step = job.stage, job.stage.decide
    spills = place.stage(stage.before)
    if step is None or step.method == "exact":
        drops = find_equal(spills, job.blocks, task.number, job.parts)
    else:
        drops = find_similar(spills, job.blocks, step)
    target = drops_file(place.stage(stage.number), task.number)
    save_drops(target, drops)
    return {"kept": [[target.relative_to(place.root).as_posix(), target.stat().st_size]]}


def _rows(job: Job, task: Task, place: Workplace) -> dict[str, Any]:
    stage = job.stage
    bad, counts = BadRows(job.files, job.skip), Counts()
    records = _counted(_source(job, task, place, bad, counts), stage.counted, counts)
    for operator in operators(stage.steps, bad, counts):
        records = map(operator, records)
    values: dict[str, Any] = {"kept": []}
    if stage.write is not None:
        values["written"] = _write(job, task, place, records, bad, counts)
        values["kept"] = [[one["name"], one["bytes"] if Path(one["name"]).suffix else -1] for one in values["written"]]
    else:
        folder = block_folder(place.stage(stage.number), task.number)
        rows, size = _spill(folder, job, task, records, bad, counts)
        values |= {"rows": rows, "bytes": size}
        values["kept"] = [[(folder / "rows.bin").relative_to(place.root).as_posix(), size]]
    if bad.lines:
        target = place.bad_file(stage.number, task.number)
        write_text(target, "".join(f"{line}\n" for line in bad.lines))
        values["kept"].append([target.relative_to(place.root).as_posix(), target.stat().st_size])
    if task.block is not None:
        values["bytes_read"] = _bytes_of(job, task.block)
    return {**values, "counts": counts, "reasons": bad.reasons}


def _source(job: Job, task: Task, place: Workplace, bad: BadRows, counts: Counts) -> Iterator[list[Record]]:
    """Yield the records that the stage begins with, some at a time."""
    stage = job.stage
    if task.block is not None:
        count = counts.setdefault(_READ, [0, 0, 0])
        name = f"{_READ}. {job.read.words()}"

        def refuse(file: int, at: int, reason: BadRecord, row: object) -> None:
            count[0] += 1
            count[2] += 1
            bad.add(name, file, at, reason, row)

        for records in read_block(job.files, task.block, job.read, refuse):
            count[0] += len(records)
            count[1] += len(records)
            yield records
        return
    spills = place.stage(stage.before)
    if stage.source == "dedup":
        yield from _some(kept_rows(spills, place.stage(stage.before + 1), job.parts, task.number))
    else:
        yield from _some(shuffled_rows(spills, job.blocks, task.number, job.parts))


def _some(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while held := list(islice(rest, _AT_ONCE)):
        yield held


def _counted(records: Iterator[list[Record]], step: int, counts: Counts) -> Iterator[list[Record]]:
    """Count the records that come from the stage before as rows out of `step`."""
    for some in records:
        if step:
            counts.setdefault(step, [0, 0, 0])[1] += len(some)
        yield some


def _write(
    job: Job, task: Task, place: Workplace, records: Iterator[list[Record]], bad: BadRows, counts: Counts
) -> list[dict[str, Any]]:
    number, write = job.stage.write or (0, None)
    if write is None:
        return []
    with BlockWriter(place.root, write, task.number) as writer:
        _add_all(writer, records, f"{number}. {write.words()}", bad, counts.setdefault(number, [0, 0, 0]))
        return [one._asdict() for one in writer.close()]


def _spill(
    folder: Path, job: Job, task: Task, records: Iterator[list[Record]], bad: BadRows, counts: Counts
) -> tuple[int, int]:
    number, exchange = job.stage.exchange or (0, None)
    if exchange is None:
        return 0, 0
    count = counts.setdefault(number, [0, 0, 0])
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_folder(folder, replace=True))
        writer = SpillWriter(temporary, task.number, exchange)
        stack.callback(writer.discard)
        _add_all(writer, records, f"{number}. {exchange.words()}", bad, count)
        count[1] = 0  # counted where they come out
        return writer.close()


def _add_all(
    writer: BlockWriter | SpillWriter, records: Iterator[list[Record]], name: str, bad: BadRows, count: list[int]
) -> None:
    def refuse(record: Record, error: BadRecord) -> None:
        count[2] += 1
        bad.add(name, record[0], record[1], error, record[3])

    for some in records:
        count[0] += len(some)
        count[1] += writer.add_all(some, refuse)


def _bytes_of(job: Job, block: FileBlock) -> int:
    if job.files[block.file].format in ("audio", "image"):
        return sum(file.size for file in job.files[block.file : block.file + block.files])
    if job.files[block.file].format == "parquet":
        return job.files[block.file].size if block.start == 0 else 0
    return block.end - block.start
