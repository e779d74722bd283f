"""A plan from its check to its report: stage after stage, each block that is not done yet.

Not here: what a block is (`task`), and where blocks run (`local`, `on_ray`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepseek.data.etl.exchange import ROWS_OF_PART
from deepseek.data.etl.fingerprint import fingerprint
from deepseek.data.etl.inputs import InputFile, cut, find_files
from deepseek.data.etl.local import run_local
from deepseek.data.etl.parquet import arrow_schema
from deepseek.data.etl.report import Progress, RunReport, StepCount
from deepseek.data.etl.stages import Stage, cut_stages
from deepseek.data.etl.steps import Plan, Read, Split, Write
from deepseek.data.etl.task import Job, Task
from deepseek.data.etl.workplace import FORMAT, Workplace
from deepseek.data.readers.tree import shown
from deepseek.errors import ConfigError, DataError, did_you_mean
from deepseek.files import atomic_path, folder_lock, storage_errors

_ENGINES = ("local", "ray")
_SMALL_PARTS = 64
_PART_BYTES = 64 << 20
_EARLY = 10_000


@dataclass(frozen=True)
class Options:
    """How a plan is run; nothing in it changes the output."""

    engine: str
    workers: int | None
    resume: bool
    bad_rows: str | None
    max_bad_share: float
    progress: Callable[[Progress], None] | None

    def check(self) -> None:
        """Raise ConfigError for a wrong option."""
        if self.engine not in _ENGINES:
            raise ConfigError("unknown engine", found=repr(self.engine), wanted=did_you_mean(self.engine, _ENGINES))
        if self.workers is not None and not 1 <= self.workers <= 4096:
            raise ConfigError("workers is out of range", found=self.workers, wanted="1 to 4096")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError("max_bad_share is out of range", found=self.max_bad_share, wanted="0 to 1")
        if self.bad_rows is None and self.max_bad_share < 1:
            raise ConfigError(
                "max_bad_share has no effect without bad_rows",
                found=self.max_bad_share,
                fix="pass bad_rows='bad.jsonl'; without it the first bad row ends the run",
            )


@dataclass
class _State:
    """A run in progress."""

    plan: Plan
    options: Options
    place: Workplace
    files: tuple[InputFile, ...]
    stages: Sequence[Stage]
    report: RunReport
    began: float = field(default_factory=time.monotonic)
    bad_tasks: list[tuple[int, int]] = field(default_factory=list)
    written: list[tuple[str, int]] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def run_plan(plan: Plan, options: Options) -> RunReport:
    """Run a plan; see `DataPipeline.run`."""
    options.check()
    if plan.sink is None:
        raise ConfigError("the plan writes nothing", found=plan.source.words(), fix="end it with .write('out')")
    if plan.sink.types:
        arrow_schema(plan.sink.columns, plan.sink.types)
    if any(isinstance(step, Split) and "" in dict(step.shares) for step in plan.steps):
        raise ConfigError("a split needs a name")
    place = Workplace(Path(plan.sink.path))
    files = find_files(plan.source)
    _check_paths(plan.source, files, place.root, options.bad_rows)
    names = [plan.source.words(), *(step.words() for step in plan.steps), plan.sink.words()]
    report = RunReport([StepCount(f"{number}. {name}") for number, name in enumerate(names, 1)])
    state = _State(plan, options, place, tuple(files), cut_stages(plan.steps, plan.sink), report)
    try:
        with folder_lock(place.folder):
            return _run_locked(state, plan.sink)
    finally:
        with contextlib.suppress(OSError):  # what a run needs to go on stays there
            place.folder.rmdir()


def _run_locked(state: _State, sink: Write) -> RunReport:
    """Run a plan, the output folder being held."""
    plan, options, place, report = state.plan, state.options, state.place, state.report
    described = _described(plan, sink, state.files)
    beside = None if options.bad_rows is None else Path(options.bad_rows).resolve()
    done = place.begin(described, options.resume, beside)
    if done is not None:
        return _report_of(done["report"])
    with _engine(options):
        _run_stages(state)
    _write_bad_rows(state)
    report.files = [name for name, _ in sorted(state.written)]
    report.seconds = time.monotonic() - state.began
    place.finish(described, asdict(report), sorted(state.written))
    return report


@contextlib.contextmanager
def _engine(options: Options) -> Iterator[None]:
    if options.engine == "local":
        yield
        return
    from deepseek.data.etl.on_ray import ray_running

    with ray_running(options.workers):
        yield


def _check_paths(read: Read, files: Sequence[InputFile], root: Path, bad_rows: str | None) -> None:
    """Raise ConfigError where the output is in the input, or the other way round."""
    out = root.resolve()
    if root.exists() and not root.is_dir():
        raise ConfigError("write takes a folder", found=f"the file {root}", fix="choose another path")
    for given in read.paths:
        if os.path.isdir(given) and (out == Path(given).resolve() or Path(given).resolve() in out.parents):
            raise ConfigError(
                "the output would be in the folder that is read", found=f"{given} and {root}", fix="write beside it"
            )
    for file in files:
        path = Path(file.path).resolve()
        if out in path.parents:
            raise ConfigError("an input lies in the output folder", found=shown(file.path), fix="write elsewhere")
        if bad_rows is not None and path == Path(bad_rows).resolve():
            raise ConfigError("bad_rows is one of the inputs", found=bad_rows, fix="choose another file")


def _described(plan: Plan, sink: Write, files: Sequence[InputFile]) -> dict[str, Any]:
    """Return all that the output depends on, as plain values."""
    steps = [{"words": plan.source.words(), "hash": fingerprint(asdict(plan.source))}]
    for step in plan.steps:
        steps.append({"words": step.words(), "hash": fingerprint(step)})
    settings = {key: value for key, value in asdict(sink).items() if key != "path"}
    steps.append({"words": f"write(format={sink.format!r})", "hash": fingerprint(settings)})
    splits = [name for step in plan.steps if isinstance(step, Split) for name, _ in step.shares] or [""]
    inputs = [[shown(file.path), file.size, file.mtime_ns] for file in files]
    return {"format": FORMAT, "steps": steps, "splits": splits, "inputs": inputs}


def _run_stages(state: _State) -> None:
    blocks = cut(state.files, state.plan.source)
    tasks = [Task(number, block) for number, block in enumerate(blocks)]
    parts, waiting = 1, 0
    results: list[dict[str, Any]] = []
    for stage in state.stages:
        if stage.decide is not None:
            rows = sum(result["rows"] for result in results)
            parts = max(1, -(-rows // ROWS_OF_PART)) if stage.decide.method == "exact" else 1
            tasks = [Task(number) for number in range(parts)] if waiting else []
        elif stage.source == "dedup":
            tasks = [Task(number) for number in range(waiting)]
        elif stage.source == "shuffle":
            parts = _parts(sum(result["bytes"] for result in results), state.plan.source.block_bytes)
            tasks = [Task(number) for number in range(parts)] if waiting else []
        skip = state.options.bad_rows is not None
        root = str(state.place.root.resolve())
        job = Job(root, state.files, state.plan.source, stage, skip, waiting, parts)
        results = _run_stage(state, job, tasks)
        if stage.decide is None:
            waiting = len(tasks)
            if stage.before >= 0:
                state.place.consume(stage.before)
    _check_bad_share(state, 1)


def _parts(size: int, block_bytes: int) -> int:
    """Return the parts of a shuffle: small ones, so that several processes have work, of large data larger ones."""
    small = max(1, -(-size // block_bytes))
    return small if small <= _SMALL_PARTS else max(_SMALL_PARTS, -(-size // _PART_BYTES))


def _run_stage(state: _State, job: Job, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Do the tasks of a stage that are not done; return what all of them did, in order."""
    number = job.stage.number
    found = {task.number: state.place.result(number, task.number) for task in tasks}
    results = {task: values for task, values in found.items() if values is not None}
    state.report.resumed_blocks += len(results)
    for task in sorted(results):
        _take(state, job.stage, task, results[task])
    state.report.blocks += len(tasks)
    if results:
        _tell(state, job.stage, len(results), len(tasks))
    left = [task for task in tasks if task.number not in results]
    with storage_errors(state.place.root):
        state.place.stage(number).mkdir(parents=True, exist_ok=True)
    for task, values in _done_by(state.options, job, left):
        results[task] = values
        _take(state, job.stage, task, values)
        _tell(state, job.stage, len(results), len(tasks))
        _check_bad_share(state, _EARLY)
    return [results[task.number] for task in tasks]


def _done_by(options: Options, job: Job, tasks: Sequence[Task]) -> Iterator[tuple[int, dict[str, Any]]]:
    if not tasks:
        return iter(())
    if options.engine == "local":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return run_local(job, tasks, cores if options.workers is None else options.workers)
    from deepseek.data.etl.on_ray import run_ray

    return run_ray(job, tasks, options.workers)


def _take(state: _State, stage: Stage, task: int, values: dict[str, Any]) -> None:
    """Add what a task did to the report."""
    report = state.report
    for step, counts in values.get("counts", {}).items():
        report.steps[int(step) - 1].add(counts)
    for reason, count in values.get("reasons", {}).items():
        report.reasons[reason] = report.reasons.get(reason, 0) + count
    report.bytes_read += values.get("bytes_read", 0)
    if values.get("reasons"):
        state.bad_tasks.append((stage.number, task))
        if state.options.bad_rows is None:
            raise DataError(
                "an earlier run passed over bad rows that this one does not allow",
                found=", ".join(values["reasons"]),
                fix="pass bad_rows= again, or resume=False to start over",
            )
    for one in values.get("written", []):
        state.written.append((one["name"], one["bytes"] if Path(one["name"]).suffix else -1))
        report.bytes_written += one["bytes"]
        report.rows_of_split[one["split"]] = report.rows_of_split.get(one["split"], 0) + one["rows"]
        _check_columns(state, one)


def _check_columns(state: _State, written: dict[str, Any]) -> None:
    """Raise DataError where a table has other columns than the ones before."""
    if not written["columns"]:
        return
    first = next(iter(state.columns), written["name"])
    columns = state.columns.setdefault(first, written["columns"])
    if columns != written["columns"]:
        raise DataError(
            f"the tables {first} and {written['name']} have different columns",
            found=f"{columns} and {written['columns']}".replace("\n", ", ")[:600],
            fix="name them with write(columns=...), of Parquet with their types: {'id': 'int64'}",
        )


def _tell(state: _State, stage: Stage, done: int, blocks: int) -> None:
    if state.options.progress is not None:
        report, seconds = state.report, time.monotonic() - state.began
        counts = (report.rows_read, report.rows_written, report.bad, seconds)
        state.options.progress(Progress(stage.number + 1, len(state.stages), done, blocks, *counts))


def _check_bad_share(state: _State, least: int) -> None:
    """Raise DataError where too many rows are bad, of at least `least`."""
    report, allowed = state.report, state.options.max_bad_share
    if report.rows_read >= least and report.bad > allowed * report.rows_read:
        _write_bad_rows(state)
        raise DataError(
            "too many bad rows",
            found=f"{report.bad} of {report.rows_read}: "
            + ", ".join(f"{count} x {reason}" for reason, count in sorted(report.reasons.items())),
            wanted=f"a share of at most {allowed:g}",
            fix=f"look at {state.options.bad_rows}, or raise max_bad_share",
        )


def _write_bad_rows(state: _State) -> None:
    """Write the bad rows of all blocks, in order of the stages and blocks."""
    if state.options.bad_rows is None:
        return
    target = Path(state.options.bad_rows)
    with atomic_path(target) as temporary, open(temporary, "wb") as handle:
        for stage, task in sorted(state.bad_tasks):
            handle.write(state.place.bad_file(stage, task).read_bytes())


def _report_of(values: dict[str, Any]) -> RunReport:
    steps = [StepCount(**step) for step in values.pop("steps")]
    return RunReport(steps, **values)
