"""What a file or folder holds, in counts: the ground on which `open_reader` chooses.

A file counts by its content. Of many files with one suffix a few are looked into and the others taken to be alike.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deepseek.data.columns import StringColumn
from deepseek.data.readers.content import kind_of
from deepseek.data.readers.tree import files_below

_FEW = 16
_LOOKS = 5


@dataclass(frozen=True)
class Survey:
    """The files below `root` and, for each kind of content, the rows of `files` that have it."""

    root: Path
    is_file: bool
    files: StringColumn
    rows: dict[str, list[int]]

    @classmethod
    def of(cls, path: str | Path) -> Survey:
        """Look at a file or folder. Raises DataError where it can't be read."""
        root, files = files_below(path)
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(files):
            groups.setdefault(_suffix(name), []).append(row)
        rows: dict[str, list[int]] = {}
        for group in groups.values():
            if len(group) <= _FEW:
                for row in group:
                    rows.setdefault(kind_of(root / files[row]), []).append(row)
            else:
                looks = [group[step * (len(group) - 1) // (_LOOKS - 1)] for step in range(_LOOKS)]
                kinds = Counter(kind_of(root / files[row]) for row in looks)
                rows.setdefault(kinds.most_common(1)[0][0], []).extend(group)
        return cls(root, not Path(path).is_dir(), files, {kind: sorted(found) for kind, found in rows.items()})

    def names(self, kind: str) -> list[str]:
        """Return the files of one kind, relative to `root`, sorted."""
        return [self.files[row] for row in self.rows.get(kind, [])]

    def __contains__(self, kind: str) -> bool:
        return kind in self.rows

    def summary(self) -> str:
        """Return what is there in words: "a folder with 292 .jpg (image) and 292 .xml (voc)"."""
        if self.is_file:
            return f"a file of kind '{next(iter(self.rows))}'"
        if not self.rows:
            return "a folder with no files"
        counts = Counter(
            (_suffix(self.files[row]) or "without suffix", kind) for kind, rows in self.rows.items() for row in rows
        )
        parts = [f"{count} {suffix} ({kind})" for (suffix, kind), count in counts.most_common(6)]
        more = f" and {len(counts) - 6} other kinds" if len(counts) > 6 else ""
        return "a folder with " + ", ".join(parts) + more


def _suffix(name: str) -> str:
    base, suffix = os.path.splitext(name.rpartition("/")[2].lower())
    return os.path.splitext(base)[1] + suffix if suffix == ".gz" else suffix
