"""Folders of recordings: one folder a class, with fields in their names, or with a text each.

Not here: decoding (`deepseek.data.audio.io`), manifests in JSON lines (`jsonl`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.media import load_audio
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import class_ids, shown, stem
from deepseek.errors import ConfigError, DataError

MAX_TEXT_BYTES = 1 << 20
_NOT_FIELDS = frozenset({"index", "epoch"})
_TAKEN = frozenset({"label", "path", "waveform", "sample_rate"})
_PLACEHOLDER = re.compile(r"\\\{([A-Za-z_][A-Za-z0-9_]*)\\\}")


class AudioFiles:
    """All recordings below a folder, sorted by path: `waveform`, `sample_rate`, `path`, and what their names say.

    `pattern` reads fields out of each file's name without folders: `"{digit}_{speaker}_{index}.wav"`, or a regular
    expression with named groups. Each field is a text in the sample (but `index` and `epoch`, which pipelines use).
    The field `label`, the first one if not given, becomes the `label` by `class_names`, which are sorted (numbers by
    value) or given. Raises DataError for a name that does not match.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        pattern: str | None = None,
        label: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if pattern is None and (label is not None or class_names is not None):
            raise ConfigError("label and class_names have no effect without pattern", fix="give pattern=")
        self._root, names, self._sizes = _recordings(path)
        self._names = StringColumn(names)
        self.class_names: tuple[str, ...] = ()
        self._labels: NDArray[np.int64] | None = None
        self._fields: dict[str, StringColumn] = {}
        if pattern is not None:
            fields = _fields(names, _compiled(pattern))
            chosen = next(iter(fields)) if label is None else label
            if chosen not in fields:
                raise ConfigError("label is no field of the pattern", found=repr(label), wanted=", ".join(fields))
            self.class_names, self._labels = class_ids(fields[chosen], class_names)
            self._fields = {key: StringColumn(values) for key, values in fields.items() if key not in _NOT_FIELDS}

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each file, in proportion to its length where all are encoded alike."""
        return self._sizes

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        sample = _recording(self._root / self._names[index])
        sample.update({key: column[index] for key, column in self._fields.items()})
        return sample if self._labels is None else {**sample, "label": int(self._labels[index])}


class AudioFolder:
    """Recordings in one folder a class: `waveform`, `sample_rate`, `label`, `path`, sorted by class, then by path.

    The class is the first folder below `path`; `class_names` are sorted (numbers by value), or given.
    Raises DataError for recordings that lie in no class folder.
    """

    def __init__(self, path: str | Path, *, class_names: Sequence[str] | None = None) -> None:
        self._root, names, sizes = _recordings(path)
        homeless = [name for name in names if "/" not in name]
        if homeless:
            raise DataError(
                f"{shown(path)} is no folder of class folders",
                found=f"{len(homeless)} recordings outside them, such as {shown(homeless[0])}",
                wanted="recordings as in root/yes/1.wav",
                fix="pass kind='audio', with pattern= if the names say the class",
            )
        self.class_names, ids = class_ids([name.partition("/")[0] for name in names], class_names)
        order = ids.argsort(kind="stable")
        self._labels, self._sizes = ids[order], sizes[order]
        self._names = StringColumn(names[row] for row in order)

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each file, in proportion to its length where all are encoded alike."""
        return self._sizes

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        return {**_recording(self._root / self._names[index]), "label": int(self._labels[index])}


class AudioText:
    """Recordings with a text file of the same name beside each: `waveform`, `sample_rate`, `text`, `path`.

    The text is UTF-8, white space around it left out. `partial=True` leaves recordings without text out.
    Raises DataError for a recording without text, and for a text over `MAX_TEXT_BYTES`.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self._root, names, sizes = _recordings(path)
        has_text = np.array([(self._root / _text_name(name)).is_file() for name in names], dtype=bool)
        if not has_text.any() or not (partial or has_text.all()):
            alone = names[int(has_text.argmin())]
            raise DataError(
                f"{shown(self._root / alone)} has no text",
                found=f"{int(has_text.sum())} of {len(names)} recordings with a text",
                wanted=shown(_text_name(alone)),
                fix="pass partial=True to leave such recordings out" if has_text.any() else None,
            )
        self._names = StringColumn(name for name, kept in zip(names, has_text, strict=True) if kept)
        self._sizes: NDArray[np.int64] = sizes[has_text]

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each recording, in proportion to its length where all are encoded alike."""
        return self._sizes

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        name = self._names[index]
        return {**_recording(self._root / name), "text": _text(self._root / _text_name(name))}


def _recordings(path: str | Path) -> tuple[Path, list[str], NDArray[np.int64]]:
    """Return (folder, names of the recordings, their sizes in bytes). Raises DataError where there is none."""
    survey = Survey.of(path)
    names = survey.names("audio")
    if not names:
        raise DataError(f"{shown(path)} holds no recordings", found=survey.summary(), wanted="WAV, FLAC or OGG")
    try:
        sizes = [os.stat(survey.root / name).st_size for name in names]
    except OSError as error:
        raise DataError(f"can't read {shown(error.filename)}", found=error.strerror) from None
    return survey.root, names, np.array(sizes, dtype=np.int64)


def _recording(file: Path) -> Sample:
    waveform, rate = load_audio(file)
    return {"waveform": waveform, "sample_rate": rate, "path": str(file)}


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the expression of a pattern with {names} or with named groups. Raises ConfigError."""
    plain = "(?P<" not in pattern
    expression = _PLACEHOLDER.sub(r"(?P<\1>.+?)", re.escape(pattern)) if plain else pattern
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ConfigError("the pattern can't be used", found=repr(pattern), wanted=str(error)) from None
    wrong = sorted(_TAKEN.intersection(compiled.groupindex))
    if not compiled.groupindex or wrong:
        raise ConfigError(
            "the pattern needs fields of their own names",
            found=f"{pattern!r} with {', '.join(wrong) or 'no field'}",
            wanted="such as '{digit}_{speaker}_{index}.wav'",
        )
    return compiled


def _fields(names: Sequence[str], pattern: re.Pattern[str]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {key: [] for key in pattern.groupindex}
    for name in names:
        match = pattern.fullmatch(name.rpartition("/")[2])
        if match is None:
            raise DataError(
                f"{shown(name)} does not match the pattern",
                wanted=pattern.pattern,
                fix="change pattern= or move the file",
            )
        for key, values in fields.items():
            values.append(match[key] or "")
    return fields


def _text_name(name: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{stem(name)}.txt"


def _text(file: Path) -> str:
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8-sig").strip()
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(file)} is not valid UTF-8", found=f"byte {error.start + 1}") from None
    if len(data) > MAX_TEXT_BYTES or "\0" in text:
        found = "NUL bytes" if "\0" in text else f"more than {MAX_TEXT_BYTES} bytes"
        raise DataError(f"{shown(file)} is no transcript", found=found)
    return text
