"""JSON lines as samples: text or chat records, or annotations of images and recordings that lie beside the file.

Any row is read in O(1); the index is in arrays. Not here: documents for language models
(`deepseek.data.read_documents`), tables (`csv_table`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.content import kind_of
from deepseek.data.readers.json_line import parse_object
from deepseek.data.readers.media import load_audio, load_image, load_mask
from deepseek.data.readers.rows import MAX_LINE_BYTES, OnError, check_policy, index_lines
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import classes_of, shown
from deepseek.data.record_forms import BadRecord
from deepseek.data.records import ReadReport
from deepseek.errors import ConfigError, DataError

Media = Literal["auto", "image", "audio", "none"]
_RESERVED = ("index", "epoch")


class JsonLines:
    """The objects of a JSONL file, or of all JSONL files of a folder in order of their names.

    | key of the line | in the sample |
    |---|---|
    | `path`, `image` or `audio` | the file it names, from the JSONL's folder: `image`, or `waveform`, `sample_rate` |
    | `mask` | the mask it names (with images) |
    | `label`, `box_labels` | ints stay; names become ids, `class_names` in order (numbers by value) |
    | `boxes` | float32 (n, 4), x1 y1 x2 y2 in pixels |
    | any other | as it is; `index` and `epoch` are left out, since pipelines use these names |

    `path` of a sample is the image or recording, or the JSONL file where no file is read.

    `rename` gives a key another name first: `{"sentence1": "text"}`. `media` "auto" reads the files that the first
    line names if they are images or audio; "none" never does. Blank lines are passed over. Every line is checked when
    the file is opened: `on_error` "raise" ends with DataError at `file:line`, "skip" goes on and counts in `report`.
    `check=False` opens at the speed of the disk; then bad lines are found when they are read, and names of classes have
    to be given. A line longer than `max_line_bytes` is bad and never held in memory.

    Raises ConfigError for wrong options, DataError for files that can't be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        rename: Mapping[str, str] | None = None,
        class_names: Sequence[str] | None = None,
        media: Media = "auto",
        on_error: OnError = "raise",
        check: bool = True,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        check_policy(on_error, max_line_bytes)
        if media not in get_args(Media):
            raise ConfigError("unknown media", found=repr(media), wanted="'auto', 'image', 'audio' or 'none'")
        if on_error == "skip" and not check:
            raise ConfigError("on_error='skip' has no effect with check=False", fix="leave one of them out")
        survey = Survey.of(path)
        names = list(survey.files) if survey.is_file else survey.names("jsonl")
        if not names:
            raise DataError(f"{shown(path)} holds no JSON lines", found=survey.summary(), wanted=".jsonl files")
        self._rename = dict(rename or {})
        self._given = None if class_names is None else frozenset(class_names)
        self._seen: set[str] = set()
        self.report = ReadReport()
        files = [survey.root / name for name in names]
        self._rows = index_lines(files, self._check if check else None, on_error, max_line_bytes, self.report)
        self.class_names = classes_of(self._seen) if class_names is None else tuple(class_names)
        self._ids = {name: number for number, name in enumerate(self.class_names)}
        self._media = self._choose_media(media)

    def __len__(self) -> int:
        return len(self._rows)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each line."""
        return self._rows.size

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError naming `file:line`."""
        try:
            record = self._record(self._rows.read(index))
            base = Path(self._rows.path(index))
            sample: Sample = {key: value for key, value in record.items() if key not in _RESERVED}
            sample["path"] = str(base)
            if self._media != "none":
                self._add_media(sample, record, base.parent)
            if "label" in sample:
                sample["label"] = self._id(sample["label"])
            if "boxes" in sample:
                sample["boxes"] = _boxes(sample["boxes"])
                sample["box_labels"] = self._box_labels(sample)
        except BadRecord as bad:
            raise DataError(f"{self._rows.where(index)}: {bad.reason}", found=bad.detail or None) from None
        return sample

    def _record(self, line: bytes) -> dict[str, Any]:
        record = parse_object(line)
        if self._rename:
            renamed = {self._rename.get(key, key): value for key, value in record.items()}
            if len(renamed) != len(record):
                raise BadRecord("rename gives two keys one name", ", ".join(record)[:200])
            return renamed
        return record

    def _check(self, line: bytes) -> None:
        """Look at a line when the file is opened, and collect the names of classes."""
        record = self._record(line)
        if "boxes" in record:
            boxes = _boxes(record["boxes"])
            labels = record.get("box_labels", [0] * len(boxes))
            if not isinstance(labels, list) or len(labels) != len(boxes):
                raise BadRecord("boxes and box_labels differ in number", f"{len(boxes)} boxes")
        labels = [record["label"]] if "label" in record else []
        if isinstance(record.get("box_labels"), list):
            labels += record["box_labels"]
        for label in labels:
            if isinstance(label, str):
                if self._given is not None and label not in self._given:
                    raise BadRecord("unknown class", repr(label)[:60])
                if label not in self._seen:
                    self._seen.add(label)

    def _choose_media(self, media: Media) -> Media:
        if media != "auto":
            return media
        try:
            record = self._record(self._rows.read(0))
        except BadRecord as bad:
            raise DataError(f"{self._rows.where(0)}: {bad.reason}", found=bad.detail or None) from None
        named = next((record[key] for key in ("path", "image", "audio") if isinstance(record.get(key), str)), None)
        if named is None or "\0" in named:
            return "none"
        kind = kind_of(Path(self._rows.path(0)).parent / named)
        return "image" if kind == "image" else "audio" if kind == "audio" else "none"

    def _add_media(self, sample: Sample, record: Mapping[str, Any], folder: Path) -> None:
        named = record.get("path", record.get(self._media))
        if not isinstance(named, str) or "\0" in named:
            raise BadRecord("no path", f"wanted the key 'path' or '{self._media}' with the name of a file")
        file = folder / named
        sample["path"] = os.fspath(file)
        if self._media == "audio":
            sample.pop("audio", None)
            sample["waveform"], sample["sample_rate"] = load_audio(file)
            return
        sample["image"] = load_image(file, 3)
        if isinstance(record.get("mask"), str):
            sample["mask"] = load_mask(folder / record["mask"])

    def _id(self, label: Any) -> Any:
        if isinstance(label, str):
            if label not in self._ids:
                raise BadRecord("unknown class", f"{label[:60]!r}; the classes are {', '.join(self.class_names)[:200]}")
            return self._ids[label]
        return torch.tensor(label, dtype=torch.float32) if isinstance(label, list) else label

    def _box_labels(self, sample: Sample) -> Tensor:
        labels = sample.get("box_labels", [0] * len(sample["boxes"]))
        if not isinstance(labels, list) or len(labels) != len(sample["boxes"]):
            raise BadRecord("boxes and box_labels differ in number", f"{len(sample['boxes'])} boxes")
        ids = [self._id(label) for label in labels]
        if not all(isinstance(one, int) for one in ids):
            raise BadRecord("box_labels of a wrong type", "wanted ints or names")
        return torch.tensor(ids, dtype=torch.int64)


def _boxes(value: Any) -> Tensor:
    """Return float32 (n, 4). Raises BadRecord."""
    try:
        boxes = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise BadRecord("boxes of a wrong form", "wanted a list of [x1, y1, x2, y2]") from None
    if boxes.numel() == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadRecord("boxes of a wrong form", f"shape {tuple(boxes.shape)}; wanted (n, 4)")
    if not bool(torch.isfinite(boxes).all()) or bool((boxes[:, 2:] <= boxes[:, :2]).any()):
        raise BadRecord("a box without area", "wanted x1 < x2 and y1 < y2")
    return boxes
