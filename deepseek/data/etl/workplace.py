"""The folder a run works in: `.etl` in the output folder, with the plan, what is done, and rows that wait.

    plan.json               steps, functions' hashes, inputs: what must be the same for a run to go on
    stage-0/00012.json      block 12 is done: what it counted and wrote; written last, so what it names is there
    stage-0/00012/          rows of a block that wait for the next stage

After a run `.etl` goes, and `_manifest.json` beside the output says what is there. Not here: what a task does (`task`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.errors import ConfigError, DataError
from deepseek.files import storage_errors, sweep_temporaries, write_json

FORMAT = "deepseek.etl.1"
MANIFEST = "_manifest.json"
PARTS = "part-[0-9]*"
_FOLDER = ".etl"


@dataclass(frozen=True)
class Workplace:
    """Where a run writes: `root` is the output folder."""

    root: Path

    @property
    def folder(self) -> Path:
        """The folder of the run itself."""
        return self.root / _FOLDER

    def stage(self, number: int) -> Path:
        """Return the folder of a stage."""
        return self.folder / f"stage-{number}"

    def result_file(self, stage: int, task: int) -> Path:
        """Return the file that says a task is done."""
        return self.stage(stage) / f"{task:05d}.json"

    def bad_file(self, stage: int, task: int) -> Path:
        """Return the file of a task's bad rows."""
        return self.stage(stage) / f"{task:05d}.bad"

    def result(self, stage: int, task: int) -> dict[str, Any] | None:
        """Return what a task did, or None where it is not done or its files are not there."""
        values = _read(self.result_file(stage, task))
        if values is None or self._consumed(stage).exists():
            return values
        for name, size in values.get("kept", []):
            path = self.root / name
            if not path.exists() or (size >= 0 and path.stat().st_size != size):
                return None
        return values

    def consume(self, stage: int) -> None:
        """Remove the rows of a stage that waited for one that is done; what it counted stays."""
        write_json(self._consumed(stage), {})
        for path in self.stage(stage).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _consumed(self, stage: int) -> Path:
        return self.stage(stage) / "consumed"

    def begin(self, plan: Mapping[str, Any], resume: bool, beside: Path | None = None) -> dict[str, Any] | None:
        """Take the folder for `plan`; return the report of a run that is finished already.

        The file `beside`, of bad rows, may be in the folder too.
        Raises ConfigError where the folder holds something else, DataError where the inputs have changed.
        """
        done, going = _read(self.root / MANIFEST), _read(self.folder / "plan.json")
        if not resume:
            self._clear(done, going)
            done = going = None
        elif going is not None:
            _compare(going, plan, self.root)
        elif done is not None:
            _compare(done.get("plan", {}), plan, self.root)
            if all(_has(self.root / name, size) for name, size in done["files"]):
                self.forget()  # what a kill at the very end left
                return done
            self._clear(done, None)
            done = None
        if going is None:
            self._refuse_strange_files(beside)
            self.forget()
            write_json(self.folder / "plan.json", plan)
        for folder in (self.root, *(path for path in self.root.glob("*") if path.is_dir()), *self._stages()):
            sweep_temporaries(folder)
        return None

    def finish(self, plan: Mapping[str, Any], report: Mapping[str, Any], files: list[tuple[str, int]]) -> None:
        """Say what the output is, and remove what was needed on the way."""
        for split in plan["splits"]:  # of workers that outlived a program that was killed
            for path in (self.root / split).glob(f"{PARTS}.tmp-*"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        values = {"format": FORMAT, "report": report, "files": files, "plan": plan}
        write_json(self.root / MANIFEST, values)
        self.forget()

    def forget(self) -> None:
        """Remove what was needed on the way; the lock, which is held, stays."""
        (self.folder / "plan.json").unlink(missing_ok=True)
        for stage in self._stages():
            shutil.rmtree(stage, ignore_errors=True)

    def _stages(self) -> list[Path]:
        return sorted(self.folder.glob("stage-*"))

    def _clear(self, done: dict[str, Any] | None, going: dict[str, Any] | None) -> None:
        """Remove what an earlier run wrote, and nothing else."""
        names = {name for name, _ in (done or {}).get("files", [])}
        for split in (going or {}).get("splits", []):  # also files whose commit a kill prevented
            names.update(path.relative_to(self.root).as_posix() for path in (self.root / split).glob(PARTS))
        with storage_errors(self.root):
            (self.root / MANIFEST).unlink(missing_ok=True)
            for name in sorted(names):
                path = self.root / name
                if self.root.resolve() not in path.resolve().parents:
                    raise ConfigError(f"{self.root / MANIFEST} names a file outside its folder", found=name)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self.forget()

    def _refuse_strange_files(self, beside: Path | None) -> None:
        strange = sorted(
            path.name
            for path in self.root.iterdir()
            if path.name != _FOLDER and not _is_empty_folder(path) and path.resolve() != beside
        )
        if strange:
            raise ConfigError(
                f"the output folder {self.root} is not empty",
                found=", ".join(strange[:5]),
                wanted="a new or empty folder, or one that an earlier run of a plan wrote",
                fix="choose another folder",
            )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _has(path: Path, size: int) -> bool:
    return path.is_dir() if size < 0 else path.is_file() and path.stat().st_size == size


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read", found=str(error)[:200], fix="remove it, or run with resume=False"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged", found=type(values).__name__, fix="remove it, or run with resume=False")
    return values


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], root: Path) -> None:
    """Raise ConfigError where a plan differs, DataError where its inputs do."""
    fix = "run with resume=False to start over, or write to another folder"
    if old.get("format") != new["format"]:
        raise ConfigError(f"{root} is of another version of this format", found=old.get("format"), fix=fix)
    before, now = old.get("steps", []), new["steps"]
    if before != now:
        place = next(
            (k for k, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
        )
        what = ["no step" if place >= len(one) else one[place]["words"] for one in (before, now)]
        same = "; its function's code or settings differ" if what[0] == what[1] else ""
        raise ConfigError(
            f"{root} holds the output of another plan: step {place + 1} has changed",
            found=f"{what[1]}{same}",
            wanted=what[0],
            fix=fix,
        )
    then, there = ({path: rest for path, *rest in one.get("inputs", [])} for one in (old, new))
    changed = sorted(path for path in set(then) | set(there) if then.get(path) != there.get(path))
    if changed or old.get("inputs") != new["inputs"]:
        raise DataError(
            f"the input has changed since {root} was written",
            found=", ".join(changed[:3]) + (", ..." if len(changed) > 3 else ""),
            wanted="the same files, sizes and times",
            fix=fix,
        )
