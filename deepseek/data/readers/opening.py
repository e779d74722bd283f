"""`open_reader`: the reader that fits what a file or folder holds.

The content decides (`content`, `survey`); names matter only for layout: folders of classes, pairs, `images` and
`labels`. Where nothing fits, or more than one reader does, the error says what is there and what to choose.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from deepseek.data.readers.json_line import parse_object
from deepseek.data.readers.pairs import pair_by_name
from deepseek.data.readers.reader import Reader
from deepseek.data.readers.rows import MAX_LINE_BYTES, lines_of
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.table import READERS
from deepseek.data.readers.tree import existing, shown, stem
from deepseek.data.record_forms import BadRecord
from deepseek.errors import ConfigError, DataError, did_you_mean
from deepseek.registry import resolve

_HINTS = {
    "xml": "XML files without <annotation> are no Pascal-VOC",
    "voc": "Pascal-VOC needs the images beside Annotations/",
    "coco": "COCO needs the images near its JSON file",
    "json": "JSON that is no COCO, no KdConv and no JSON lines; write one object a line",
    "hdf5": "open one HDF5 file, or several with deepseek.utils.data.H5Dataset",
    "parquet": "Parquet is read by deepseek.data.DataPipeline",
    "gzip": "unpack it first",
    "zip": "unpack it first",
    "UTF-16 text": "convert it to UTF-8 first",
}


def open_reader(path: str | Path, *, kind: str | None = None, **options: Any) -> Reader:
    """Return the reader of a file or folder, chosen by its content, or the one that `kind` names (`READERS`).

    `options` are those of the reader, such as `class_names`, `pattern` or `on_bad_box`: see its class.
    Raises ConfigError for an unknown kind or option, DataError for data that no reader fits, or several do, and for a
    folder with several splits (train, val, test), which are opened one by one.
    """
    name = _choose(path) if kind is None else kind
    reader: Any = resolve(READERS, name, "kind of data set")
    known = list(inspect.signature(reader).parameters)[1:]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has no options"
            raise ConfigError(f"the reader '{name}' has no option '{option}'", fix=hint)
    existing(path)
    made: Reader = reader(path, **options)
    return made


def _choose(path: str | Path) -> str:
    survey = Survey.of(path)
    _refuse_splits(path, survey)
    fitting = _fitting(survey)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{shown(path)} can be read in more than one way",
            found=survey.summary(),
            fix="choose with " + " or ".join(f"kind='{name}'" for name in fitting),
        )
    hints = [text for kind, text in _HINTS.items() if kind in survey]
    raise DataError(
        f"no reader fits {shown(path)}",
        found=survey.summary(),
        wanted=f"one of {', '.join(READERS)}",
        fix="; ".join(hints) or None,
    )


def _refuse_splits(path: str | Path, survey: Survey) -> None:
    """Raise DataError for a folder with train and test side by side: joined, one would leak into the other."""
    tops = (name.partition("/")[0] for name in survey.files)
    found = {top: stem(top).lower() for top in tops if stem(top).lower() in _SPLITS}
    if len(set(found.values())) > 1:
        names = sorted(found)
        raise DataError(
            f"{shown(path)} holds several splits of a data set",
            found=", ".join(shown(name) for name in names),
            wanted="one at a time, so that none is trained on by mistake",
            fix=f"open {shown(Path(path) / names[0])}, or name a kind= to read them together",
        )


def _fitting(survey: Survey) -> list[str]:
    """Return the names of the readers that fit, best guess first."""
    kinds = set(survey.rows)
    if survey.is_file:
        return [name for name in map(_OF_FILE.get, kinds) if name is not None]
    found = []
    if "jsonl" in kinds:
        found.append("jsonl")
        if _names_files(survey):
            kinds -= {"image", "audio", "text"}
    if {"voc", "image"} <= kinds:
        found.append("voc")
    if {"coco", "image"} <= kinds:
        found.append("coco")
    if "image" in kinds and not {"voc", "coco"} & set(found):
        found.append(_image_layout(survey.names("image")))
    if "audio" in kinds:
        found.append(_audio_layout(survey.names("audio"), set(survey.names("text"))))
    found += [name for kind, name in _ALONE.items() if kind in kinds and name not in found]
    if not found and "text" in kinds:
        found.append("text")
    return found


_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
_ALONE = {"idx": "idx", "nifti": "nifti", "npy": "arrays", "npz": "arrays", "kdconv": "kdconv", "csv": "csv"}
_OF_FILE = {
    **_ALONE,
    "audio": "audio",
    "coco": "coco",
    "hdf5": "hdf5",
    "image": "images",
    "jsonl": "jsonl",
    "text": "text",
}


def _image_layout(names: list[str]) -> str:
    try:
        pairs, alone = pair_by_name(names)
    except DataError:
        pairs, alone = [], []
    if pairs and not alone:
        return "segmentation"
    return _class_layout(names, "image_folder", "images")


def _audio_layout(names: list[str], texts: set[str]) -> str:
    stems = {name.rpartition("/")[0] + "/" + stem(name) for name in texts}
    if all(name.rpartition("/")[0] + "/" + stem(name) in stems for name in names):
        return "audio_text"
    return _class_layout(names, "audio_folder", "audio")


def _class_layout(names: list[str], classes: str, flat: str) -> str:
    """Return `classes` where every file lies in one of at least two folders."""
    folders = {name.partition("/")[0] if "/" in name else "" for name in names}
    return classes if len(folders) > 1 and "" not in folders else flat


def _names_files(survey: Survey) -> bool:
    """Return whether the first line of the first JSONL file names a file that is there."""
    file = survey.root / survey.names("jsonl")[0]
    try:
        with open(file, "rb") as handle:
            first = next((line for _, line in lines_of(handle, MAX_LINE_BYTES) if line and line.strip()), b"")
        record = parse_object(first)
        named = [record.get(key) for key in ("path", "image", "audio")]
        return any(isinstance(one, str) and "\0" not in one and (file.parent / one).is_file() for one in named)
    except (OSError, BadRecord):
        return False
