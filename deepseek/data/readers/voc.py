"""Pascal-VOC: an XML file of boxes for each image.

Source: Everingham et al. 2010, The Pascal Visual Object Classes Challenge (https://doi.org/10.1007/s11263-009-0275-4).
A document type is refused before it is read: with it come entities that grow without bound or read other files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
import torch

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.box_checks import OnBadBox, check_box_policy, settle_boxes
from deepseek.data.readers.media import Channels, load_image
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import class_ids, shown, stem
from deepseek.errors import DataError

MAX_XML_BYTES = 16 * 1024 * 1024
_UNKNOWN = 1 << 30


class PascalVoc:
    """Images with boxes: `image`, `boxes` float32 (n, 4) x1 y1 x2 y2, `box_labels` int64 (n,), `path`.

    The XML files and the images may lie in any folders below `path` (Annotations/ and JPEGImages/ in the original); the
    image is the one with the XML file's stem, or else the one that its `filename` names. The format counts pixels from
    1, the last one included, so x1 and y1 become one less. `class_names` are sorted, or given. Objects marked as
    difficult are kept unless `difficult=False`. Samples are in order of the XML files; images without XML are left out.

    A box outside its image raises DataError naming file and object, or is cut or dropped by `on_bad_box`; up to one
    pixel outside counts as rounding and is cut. Raises DataError for an XML file that can't be used, names no image, or
    says another size than the image has.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
        on_bad_box: OnBadBox = "raise",
        channels: Channels = 3,
    ) -> None:
        check_box_policy(on_bad_box)
        survey = Survey.of(path)
        files = survey.names("voc")
        if not files or "image" not in survey:
            raise DataError(
                f"{shown(path)} is no Pascal-VOC data set",
                found=survey.summary(),
                wanted="XML files with <annotation> (Annotations/) and their images (JPEGImages/)",
            )
        self._root, self._on_bad_box, self._channels = survey.root, on_bad_box, channels
        by_stem = {stem(name): name for name in survey.names("image")}
        self._files = StringColumn(files)
        parsed = [_parse(self._root / name, difficult) for name in files]
        self._images = StringColumn(
            _image_of(name, one[0], by_stem, self._root) for name, one in zip(files, parsed, strict=True)
        )
        self._sides = np.array([one[1] for one in parsed], dtype=np.int64).reshape(-1, 2)
        counts = np.array([len(one[2]) for one in parsed], dtype=np.int64)
        self.class_names, labels = class_ids([name for one in parsed for name, _ in one[2]], class_names)
        boxes = np.array([box for one in parsed for _, box in one[2]], dtype=np.float64).reshape(-1, 4)
        owner = np.repeat(np.arange(len(files)), counts)
        self._boxes, keep = settle_boxes(
            boxes, self._sides[owner, 0], self._sides[owner, 1], on_bad_box, lambda row: self._where(owner, row)
        )
        self._boxes, self._labels = self._boxes[keep], labels[keep]
        self._first = np.searchsorted(owner[keep], np.arange(len(files) + 1))

    def __len__(self) -> int:
        return len(self._files)

    def sizes(self) -> None:
        """Return None: images have no length."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        index = range(len(self))[index]
        file = self._root / self._images[index]
        image = load_image(file, self._channels)
        width, height = self._sides[index].tolist()
        rows = slice(int(self._first[index]), int(self._first[index + 1]))
        boxes, labels = self._boxes[rows].copy(), self._labels[rows].copy()
        if width == _UNKNOWN:  # the XML file gives no size: the boxes could not be checked before
            sides = np.array([image.shape[-1]] * len(boxes)), np.array([image.shape[-2]] * len(boxes))
            where = f"{shown(self._root / self._files[index])}, object"
            boxes, keep = settle_boxes(
                boxes.astype(np.float64), *sides, self._on_bad_box, lambda row: f"{where} {row + 1}"
            )
            boxes, labels = boxes[keep], labels[keep]
        elif tuple(image.shape[-2:]) != (height, width):
            raise DataError(
                f"{shown(file)} is not the image that was annotated",
                found=f"{image.shape[-1]} x {image.shape[-2]} pixels",
                wanted=f"{width} x {height}, as {shown(self._files[index])} says",
            )
        return {
            "image": image,
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(labels),
            "path": str(file),
        }

    def _where(self, owner: np.ndarray[tuple[int, ...], np.dtype[np.int64]], row: int) -> str:
        number = row - int(np.searchsorted(owner, owner[row])) + 1
        return f"{shown(self._root / self._files[int(owner[row])])}, object {number}"


class _NoDocumentType(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError("a document type in an XML file of data", found=f"<!DOCTYPE {name[:40]}", wanted="none")


def parse_xml(file: Path) -> ElementTree.Element:
    """Return the root of an XML file. Raises DataError for one with a document type, too large, or not well formed."""
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_XML_BYTES + 1)
        if len(data) > MAX_XML_BYTES:
            raise DataError("too large for an annotation", found=f"more than {MAX_XML_BYTES} bytes")
        root: ElementTree.Element = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDocumentType()))
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        problem, found = (error.problem, error.found) if isinstance(error, DataError) else ("not valid XML", str(error))
        raise DataError(f"{shown(file)}: {problem}", found=found) from None
    return root


_Parsed = tuple[str, tuple[int, int], list[tuple[str, list[float]]]]


def _parse(file: Path, difficult: bool) -> _Parsed:
    """Return (name of the image, (width, height), [(class, box)]); sides that are not given are very large."""
    root = parse_xml(file)
    objects = []
    for number, one in enumerate(root.findall("object"), 1):
        if not difficult and (one.findtext("difficult") or "0").strip() == "1":
            continue
        name = (one.findtext("name") or "").strip()
        try:
            x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            name = ""
        if not name:
            raise DataError(
                f"{shown(file)}, object {number}: incomplete", wanted="<name> and <bndbox> with xmin, ymin, xmax, ymax"
            )
        objects.append((name, [x1 - 1, y1 - 1, x2, y2]))
    sides = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    known = all(side.isascii() and side.isdigit() and 0 < int(side[:9]) < _UNKNOWN for side in sides)
    width, height = (int(sides[0][:9]), int(sides[1][:9])) if known else (_UNKNOWN, _UNKNOWN)
    return (root.findtext("filename") or "").strip(), (width, height), objects


def _image_of(file: str, filename: str, by_stem: dict[str, str], root: Path) -> str:
    image = by_stem.get(stem(file)) or by_stem.get(stem(filename))
    if image is None:
        raise DataError(
            f"{shown(root / file)} has no image", found=f"<filename> {filename[:80]!r}", wanted="an image with its name"
        )
    return image
