"""The work folder of a run, `OUTPUT.cook`: the output and undo log so far, and the state that they are good up to.

A commit syncs both files and then writes the state, whole; what stands behind the committed sizes is cut off when a run
goes on. So after a kill or a full disk nothing is lost that was committed and nothing comes twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from deepseek.errors import ConfigError, DataError
from deepseek.files import storage_errors, sweep_temporaries, write_json

_FORMAT = 1
OUTPUT, UNDO, _STATE = "output.jsonl", "undo.jsonl", "state.json"
_DUPLICATES = "duplicates-"


class WorkFolder:
    """The folder; `state` is what was committed last, or empty."""

    def __init__(self, path: Path, fingerprint: str, resume: bool) -> None:
        """Open the folder, made if need be. Raises ConfigError where it is of another input or other settings."""
        self.path = path
        self._files: dict[str, IO[bytes]] = {}
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(path)
            if not resume:
                for name in os.listdir(path):
                    if name != ".lock":
                        (path / name).unlink()
        self.state = self._read(fingerprint)
        self.fingerprint = fingerprint

    def _read(self, fingerprint: str) -> dict[str, Any]:
        state = self.path / _STATE
        if not state.is_file():
            return {}
        try:
            values: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
            same, form = values["fingerprint"] == fingerprint, values["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state} is damaged", found=str(error), fix="start over with resume=False") from None
        if not same or form != _FORMAT:
            raise ConfigError(
                f"{self.path} holds an unfinished run of another input or other settings",
                fix="run with the same ones to go on, or with resume=False to start over",
            )
        return values

    @property
    def counts(self) -> Path:
        """Where the count of lines is kept; the name is the run's own, since it is there before the first commit."""
        return self.path / f"line-counts-{self.fingerprint[:16]}.npz"

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def open(self) -> None:
        """Open output and log for appending, cut to what was committed."""
        for name in (OUTPUT, UNDO):
            path, size = self.path / name, int(self.state.get("bytes", {}).get(name, 0))
            with storage_errors(path):
                if size and (not path.is_file() or path.stat().st_size < size):
                    raise DataError(f"{path} is shorter than was committed", fix="start over with resume=False")
                handle = open(path, "ab")
                handle.truncate(size)
                self._files[name] = handle

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Write lines behind what is there; they count once committed. Raises StorageError."""
        with storage_errors(self.path / name):
            self._files[name].write("".join(f"{line}\n" for line in lines).encode("utf-8"))

    def commit(self, values: dict[str, Any], save_duplicates: Callable[[Path], None] | None) -> None:
        """Make everything so far last, and remember `values`. Raises StorageError."""
        number = int(self.state.get("commit", 0)) + 1
        sizes = {}
        for name, handle in self._files.items():
            with storage_errors(self.path / name):
                handle.flush()
                os.fsync(handle.fileno())
                sizes[name] = handle.tell()
        if save_duplicates is not None:
            save_duplicates(self.duplicates(number))
        state = {"format": _FORMAT, "fingerprint": self.fingerprint, "commit": number, "bytes": sizes, **values}
        write_json(self.path / _STATE, state)
        self.state = state
        for old in self.path.glob(f"{_DUPLICATES}*"):
            if old != self.duplicates(number):
                old.unlink(missing_ok=True)

    def duplicates(self, number: int | None = None) -> Path:
        """Return where the state of the duplicates rule is, of the last commit or of commit `number`."""
        return self.path / f"{_DUPLICATES}{number if number is not None else self.state['commit']}"

    def close(self) -> None:
        """Close the files, cut to what was committed: whole lines, even where the disk was full."""
        for name, handle in self._files.items():
            with contextlib.suppress(OSError):
                handle.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path / name, int(self.state.get("bytes", {}).get(name, 0)))
        self._files.clear()

    def move_out(self, name: str, target: Path) -> None:
        """Give a finished file its own name, unless that was done before the run was interrupted."""
        with storage_errors(target):
            if (self.path / name).exists():
                os.replace(self.path / name, target)

    def remove(self) -> None:
        """Remove the folder: the run is finished."""
        shutil.rmtree(self.path, ignore_errors=True)
