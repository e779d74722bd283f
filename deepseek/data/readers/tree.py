"""The files of a folder, as a column of names, and classes out of names.

Links to folders are followed once, hidden files left out, names that are not UTF-8 kept as Python gives them.
Not here: what the files hold (`content`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepseek.data.columns import StringColumn
from deepseek.errors import ConfigError, DataError


def shown(path: str | Path) -> str:
    """Return a path for a message: what is not UTF-8 in it as `\\xNN`, so that the message can be printed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_tree(root: Path) -> StringColumn:
    """Return the regular files below the folder `root`, relative, with "/" between the parts, sorted.

    Raises DataError for a folder that can't be read, here or below.
    """
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        waiting.append(f"{below}{entry.name}/")
                    elif _is_file(entry):
                        found.append(below + entry.name)
        except OSError as error:
            raise DataError(
                f"can't read the folder {shown(folder)}",
                found=error.strerror,
                fix="check the path and its permissions",
            ) from None
    return StringColumn(sorted(found))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def existing(path: str | Path) -> Path:
    """Return the path of a file or folder that is there. Raises DataError."""
    root = Path(path)
    try:
        root.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"can't read {shown(root) if isinstance(error, OSError) else repr(str(root))}",
            found=reason,
            fix="check the path; it may be mistyped",
        ) from None
    return root


def files_below(path: str | Path) -> tuple[Path, StringColumn]:
    """Return (folder, names of its files); of a single file, its folder and its name. Raises DataError."""
    root = existing(path)
    if root.is_dir():
        return root, list_tree(root)
    return root.parent, StringColumn([root.name])


def stem(name: str) -> str:
    """Return the last part of a name without its suffix; `.nii.gz` counts as one."""
    last = name.rpartition("/")[2]
    return last[:-7] if last.lower().endswith(".nii.gz") else os.path.splitext(last)[0]


def classes_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in order: as numbers where all are whole numbers, else by their characters."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() and len(name) < 19 for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def class_ids(
    names: Sequence[str], class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return (class names, the id of each of `names`). Raises ConfigError for a name that `class_names` lacks."""
    classes = classes_of(names) if class_names is None else tuple(class_names)
    if len(set(classes)) < len(classes):
        raise ConfigError("class_names has a name twice", found=", ".join(classes)[:200])
    place = {name: number for number, name in enumerate(classes)}
    for name in set(names).difference(place):
        raise ConfigError("class_names lacks a class of the data", found=repr(name), wanted=", ".join(classes)[:200])
    return classes, np.array([place[name] for name in names], dtype=np.int64)
