"""Some rows of a reader, with the names, classes and texts that the recipe's data section wants.

Not here: what is done to samples after that (`deepseek.data.pipeline`), batches (`deepseek.data.loaders`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.opening import open_reader
from deepseek.data.readers.reader import Reader
from deepseek.errors import ConfigError, DataError, did_you_mean
from deepseek.road.data_config import DataConfig

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NOT_CELLS = frozenset({"label", "labels", "path", "text", "index", "epoch"})
_OTHERS = "*"
_MOST_LABELS = 200_000


def expanded(path: str) -> str:
    """Return the path with `${NAME}` replaced by the environment variable. Raises ConfigError for one not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(
                f"the environment variable {match[1]} is not set",
                found=path,
                fix=f"export {match[1]}=FOLDER, or name the data with --data PATH",
            )
        return os.environ[match[1]]

    return _VARIABLE.sub(value, path)


def open_data(path: str, config: DataConfig) -> Reader:
    """Return the reader of `path` that the recipe asks for. Raises ConfigError or DataError."""
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.reader.items()
    }
    return open_reader(expanded(path), **options)


def classes_of_reader(reader: Reader) -> tuple[str, ...]:
    """Return the names of the classes; numbers where labels are numbers, none where samples have no label."""
    names = tuple(getattr(reader, "class_names", None) or ())
    if names or len(reader) == 0 or not isinstance(reader.read(0).get("label"), int):
        return names
    labels = {int(reader.read(row)["label"]) for row in range(min(len(reader), _MOST_LABELS))}
    if min(labels) < 0:
        raise DataError("labels must be class numbers", found=min(labels), wanted="0 and up")
    return tuple(str(number) for number in range(max(labels) + 1))


class Relabeling:
    """Classes renamed and joined as `data.classes` says: `names` are the new ones, `ids` the new id of each old one."""

    def __init__(self, old: Sequence[str], wanted: Mapping[str, str]) -> None:
        self.names = tuple(old)
        self.ids = np.arange(len(old))
        if not wanted:
            return
        if not old:
            raise ConfigError(
                "data.classes has no classes to change",
                found="samples without labels",
                fix="name what holds the label: data.reader {label: COLUMN}",
            )
        for name in wanted:
            if name != _OTHERS and name not in old:
                raise ConfigError(
                    "data.classes names a class that the data do not have",
                    found=repr(name),
                    fix=did_you_mean(name, old),
                )
        left = [name for name in old if name not in wanted]
        if left and _OTHERS not in wanted:
            raise ConfigError(
                "data.classes leaves classes out",
                found=", ".join(left)[:200],
                wanted="every class, or '*' for all others",
            )
        self.names = tuple(dict.fromkeys(wanted.values()))
        self.ids = np.array([self.names.index(wanted.get(name, wanted.get(_OTHERS, ""))) for name in old])


class Form(NamedTuple):
    """What the stages of the pipeline need of the samples."""

    as_rows: bool = False
    """The cells of a table in `row`."""
    makes_labels: bool = False
    """Stages make `labels` themselves, so the class has no place beside them."""


class SampleSource:
    """The samples `rows` of `reader` in the `form` that is needed, as `deepseek.data.readers.Reader` has them."""

    def __init__(
        self, reader: Reader, rows: NDArray[np.int64], config: DataConfig, classes: Relabeling, form: Form
    ) -> None:
        self.reader, self.rows = reader, rows
        self._rename, self._texts = dict(config.rename), dict(config.texts)
        self._classes, self._form = classes, form
        missing = [name for name in classes.names if name not in self._texts] if self._texts else []
        if missing:
            raise ConfigError(
                "data.texts has no text for a class", found=", ".join(missing), wanted="one for each class"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(place) for place in range(len(self)))

    def sizes(self) -> NDArray[np.int64] | None:
        """Return the reader's measure of each sample's length."""
        sizes = self.reader.sizes()
        return None if sizes is None else sizes[self.rows]

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        sample = self.reader.read(int(self.rows[index]))
        for old, new in self._rename.items():
            if old not in sample:
                raise DataError(
                    "data.rename names a value that the samples do not have",
                    found=repr(old),
                    fix=did_you_mean(old, sample),
                )
            sample[new] = sample.pop(old)
        if isinstance(sample.get("label"), int) and len(self._classes.ids) > sample["label"] >= 0:
            sample["label"] = int(self._classes.ids[sample["label"]])
            if self._texts:
                sample["text"] = self._texts[self._classes.names[sample["label"]]]
        if self._form.makes_labels:
            sample.pop("label", None)
        if "box_labels" in sample:
            sample["box_labels"] = sample["box_labels"].new_tensor(self._classes.ids[sample["box_labels"].numpy()])
        if not self._form.as_rows:
            return sample
        cells = {key: value for key, value in sample.items() if key not in _NOT_CELLS}
        kept = {key: value for key, value in sample.items() if key in _NOT_CELLS}
        return {**kept, "row": cells}


def values_of(reader: Reader, field: str) -> list[str]:
    """Return the value of `field` of every sample. Raises ConfigError where samples have no such value."""
    values = []
    for row in range(len(reader)):
        sample = reader.read(row)
        if field not in sample:
            raise ConfigError(
                "data.split_by names a value that the samples do not have",
                found=repr(field),
                wanted=", ".join(sorted(sample)),
                fix=did_you_mean(field, sample),
            )
        values.append(str(sample[field]))
    return values
