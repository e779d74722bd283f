"""COCO annotations: boxes, classes and masks of images, out of one JSON file.

Source: the COCO data format (https://cocodataset.org/#format-data). Not here: decoding of regions (`regions`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.box_checks import OnBadBox, check_box_policy, settle_boxes
from deepseek.data.readers.media import Channels, load_image
from deepseek.data.readers.regions import region_mask
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import existing, shown
from deepseek.errors import ConfigError, DataError

Masks = Literal["none", "instances", "classes"]
_MAX_SIDE = 1 << 16
_MAX_REGIONS = 1 << 31


class Coco:
    """Images with boxes: `image`, `boxes` float32 (n, 4) x1 y1 x2 y2, `box_labels` int64 (n,), `path`.

    `path` is the JSON file, or a folder with one (`annotations` names it where there are several). The images lie in
    the folder `images`, or in the first folder near the JSON file that has the first of them. Categories, in order of
    their ids, become 0 to n - 1; `class_names` has their names. Samples are the file's images in its order, those
    without annotations too.

    `masks` "instances" adds `masks` uint8 (n, height, width), one for each box, which geometric stages don't move;
    "classes" adds `mask` int64 (height, width), 0 where nothing is and class + 1 elsewhere, small regions above large
    ones, which they do move. Annotations of crowds (`iscrowd`) are left out unless `crowds=True`: their box holds many.

    A box outside its image raises DataError naming the annotation's id, or is cut or dropped by `on_bad_box`; up to one
    pixel outside counts as rounding and is cut. Raises DataError for anything else that does not fit the format.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        annotations: str | None = None,
        images: str | Path | None = None,
        masks: Masks = "none",
        crowds: bool = False,
        on_bad_box: OnBadBox = "raise",
        channels: Channels = 3,
    ) -> None:
        check_box_policy(on_bad_box)
        if masks not in get_args(Masks):
            raise ConfigError("unknown masks", found=repr(masks), wanted="'none', 'instances' or 'classes'")
        self._file = _find_json(existing(path), annotations)
        self._masks, self._channels = masks, channels
        content = _load(self._file)
        self._read_images(_entries(content, "images", self._file))
        self.class_names, category_row = _categories(_entries(content, "categories", self._file), self._file)
        self._read_annotations(_entries(content, "annotations", self._file), category_row, crowds, on_bad_box)
        del self._image_row
        self._folder = Path(images) if images is not None else self._find_images(existing(path))

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> None:
        """Return None: images have no length."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError, also for an image of another size than the JSON file says."""
        index = range(len(self))[index]
        file = self._folder / self._names[index]
        image = load_image(file, self._channels)
        height, width = int(self._heights[index]), int(self._widths[index])
        if tuple(image.shape[-2:]) != (height, width):
            raise DataError(
                f"{shown(file)} is not the image that was annotated",
                found=f"{image.shape[-1]} x {image.shape[-2]} pixels",
                wanted=f"{width} x {height}",
            )
        rows = slice(int(self._first[index]), int(self._first[index + 1]))
        sample: Sample = {
            "image": image,
            "boxes": torch.from_numpy(self._boxes[rows].copy()),
            "box_labels": torch.from_numpy(self._labels[rows].copy()),
            "path": str(file),
        }
        if self._masks != "none":
            regions = self._regions(rows, height, width)
            if self._masks == "instances":
                sample["masks"] = regions
            else:
                sample["mask"] = _painted(regions, sample["box_labels"])
        return sample

    def _regions(self, rows: slice, height: int, width: int) -> Tensor:
        """Return uint8 (n, height, width)."""
        size = (rows.stop - rows.start) * height * width
        if size > _MAX_REGIONS:
            raise DataError(
                f"{shown(self._file)}: the masks of one image take too much memory",
                found=f"{rows.stop - rows.start} masks of {height} x {width} pixels",
                wanted=f"at most {_MAX_REGIONS} bytes",
            )
        made = torch.zeros(rows.stop - rows.start, height, width, dtype=torch.uint8)
        for place, row in enumerate(range(rows.start, rows.stop)):
            try:
                made[place] = torch.from_numpy(region_mask(json.loads(self._segments[row]), height, width))
            except DataError as error:
                raise DataError(
                    f"{shown(self._file)}, annotation {self._ids[row]}: {error.problem}",
                    found=error.found,
                    wanted=error.wanted,
                ) from None
        return made

    def _read_images(self, entries: list[Mapping[str, Any]]) -> None:
        names: list[str] = []
        sides: list[tuple[Any, Any]] = []
        self._image_row: dict[int, int] = {}
        for entry in entries:
            number, name = entry.get("id"), entry.get("file_name")
            width, height = entry.get("width"), entry.get("height")
            fits = (
                type(width) is int and type(height) is int and 0 < min(width, height) <= max(width, height) <= _MAX_SIDE
            )
            if type(number) is not int or not isinstance(name, str) or not name or "\0" in name or not fits:
                raise DataError(
                    f"{shown(self._file)}: an image of a wrong form",
                    found=str(dict(entry))[:200],
                    wanted=f"id, file_name, width and height (1 to {_MAX_SIDE})",
                )
            if number in self._image_row:
                raise DataError(f"{shown(self._file)}: two images have the id {number}")
            self._image_row[number] = len(names)
            names.append(name)
            sides.append((width, height))
        if not names:
            raise DataError(f"{shown(self._file)} has no images")
        self._names = StringColumn(names)
        self._widths, self._heights = np.array(sides, dtype=np.int64).T

    def _read_annotations(
        self, entries: list[Mapping[str, Any]], category_row: Mapping[int, int], crowds: bool, on_bad_box: OnBadBox
    ) -> None:
        """Sort the annotations by image: `_boxes`, `_labels`, `_ids`, and `_first`, where those of each image begin."""
        kept = [entry for entry in entries if crowds or not entry.get("iscrowd")]
        image = np.array([self._row_of(entry, "image_id", self._image_row) for entry in kept], dtype=np.int64)
        label = np.array([self._row_of(entry, "category_id", category_row) for entry in kept], dtype=np.int64)
        boxes = np.array([self._box(entry) for entry in kept], dtype=np.float64).reshape(-1, 4)
        with np.errstate(over="ignore"):  # what becomes infinite is no good box
            boxes[:, 2:] += boxes[:, :2]
        settled, keep = settle_boxes(
            boxes,
            self._widths[image],
            self._heights[image],
            on_bad_box,
            lambda row: f"{shown(self._file)}, annotation {kept[row].get('id')}",
        )
        order = np.flatnonzero(keep)[image[keep].argsort(kind="stable")]
        self._boxes, self._labels = settled[order], label[order]
        self._ids = StringColumn(str(kept[row].get("id")) for row in order)
        self._first = np.searchsorted(image[order], np.arange(len(self._names) + 1))
        if self._masks != "none":
            self._segments = StringColumn(
                json.dumps(kept[row].get("segmentation"), separators=(",", ":")) for row in order
            )

    def _row_of(self, entry: Mapping[str, Any], key: str, rows: Mapping[int, int]) -> int:
        value = entry.get(key)
        if type(value) is not int or value not in rows:
            raise DataError(
                f"{shown(self._file)}, annotation {entry.get('id')}: no such {key.removesuffix('_id')}",
                found=f"{key} {value!r}"[:80],
            )
        return rows[value]

    def _box(self, entry: Mapping[str, Any]) -> list[float]:
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            try:
                if all(type(value) in (int, float) for value in box):
                    return [float(value) for value in box]
            except OverflowError:
                pass
        raise DataError(
            f"{shown(self._file)}, annotation {entry.get('id')}: no box",
            found=f"bbox {box!r}"[:80],
            wanted="[x, y, width, height]",
        )

    def _find_images(self, root: Path) -> Path:
        first = self._names[0]
        base = root if root.is_dir() else self._file.parent
        near = [base, self._file.parent, self._file.parent.parent, base / self._file.stem.removeprefix("instances_")]
        for folder in near:
            inner = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
            for place in (folder, *inner):
                if (place / first).is_file():
                    return place
        raise DataError(
            f"the images of {shown(self._file)} are not near it",
            found=f"no {shown(first)} in {shown(base)} or its folders",
            fix="name their folder with images=",
        )


def _find_json(root: Path, annotations: str | None) -> Path:
    if not root.is_dir():
        return root
    if annotations is not None:
        return existing(root / annotations)
    found = Survey.of(root).names("coco")
    if len(found) != 1:
        raise DataError(
            f"{shown(root)} holds {len(found)} COCO files",
            found=", ".join(shown(name) for name in found[:8]) or None,
            wanted="one",
            fix="choose one with annotations=" if found else None,
        )
    return root / found[0]


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)} is not valid JSON", found=str(error)[:200]) from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(file)} is no COCO file", found=type(content).__name__, wanted="an object")
    return content


def _entries(content: Mapping[str, Any], key: str, file: Path) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        found = "nothing" if entries is None else type(entries).__name__
        raise DataError(f"{shown(file)} has no list '{key}'", found=found, wanted="a list of objects")
    return entries


def _categories(entries: list[Mapping[str, Any]], file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    names: dict[int, str] = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if type(number) is not int or not isinstance(name, str) or number in names:
            raise DataError(
                f"{shown(file)}: a category of a wrong form",
                found=str(dict(entry))[:200],
                wanted="an id of its own, name",
            )
        names[number] = name
    order = sorted(names)
    return tuple(names[number] for number in order), {number: row for row, number in enumerate(order)}


def _painted(regions: Tensor, labels: Tensor) -> Tensor:
    """Return int64 (height, width): class + 1 of the smallest region at each pixel."""
    mask = torch.zeros(regions.shape[1:], dtype=torch.int64)
    areas: NDArray[np.int64] = regions.sum(dim=(1, 2)).numpy()
    for row in np.argsort(-areas, kind="stable").tolist():
        mask[regions[row] > 0] = int(labels[row]) + 1
    return mask
