"""Folders of images: one folder a class (`root/cat/1.png`), or images alone.

Not here: masks (`segmentation`), boxes (`voc`, `coco`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.media import Channels, load_image
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import class_ids, shown
from deepseek.errors import DataError


class ImageFiles:
    """All images below a folder (or one image), sorted by path: `image` uint8 (`channels`, height, width), `path`."""

    def __init__(self, path: str | Path, *, channels: Channels = 3) -> None:
        survey = Survey.of(path)
        self._root, self._channels = survey.root, channels
        self._names = StringColumn(survey.names("image"))
        if not len(self._names):
            raise DataError(f"{shown(path)} holds no images", found=survey.summary())

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> None:
        """Return None: images have no length."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError for an image that can't be decoded."""
        file = self._root / self._names[index]
        return {"image": load_image(file, self._channels), "path": str(file)}


class ImageFolder:
    """Images in one folder a class: `image`, `label`, `path`, sorted by class, then by path.

    The class is the first folder below `path`, at any depth under it; `class_names` are sorted (numbers by value), or
    given, where ids must be those of another data set. A folder without images is no class.
    Raises DataError for images that lie in no class folder.
    """

    def __init__(self, path: str | Path, *, class_names: Sequence[str] | None = None, channels: Channels = 3) -> None:
        survey = Survey.of(path)
        self._root, self._channels = survey.root, channels
        names = survey.names("image")
        homeless = [name for name in names if "/" not in name]
        if homeless or not names:
            raise DataError(
                f"{shown(path)} is no folder of class folders",
                found=f"{len(homeless)} images outside them, such as {shown(homeless[0])}"
                if names
                else survey.summary(),
                wanted="images as in root/cat/1.png",
                fix="pass kind='images' to read them without labels" if names else None,
            )
        self.class_names, ids = class_ids([name.partition("/")[0] for name in names], class_names)
        order = ids.argsort(kind="stable")
        self._labels = ids[order]
        self._names = StringColumn(names[row] for row in order)

    def __len__(self) -> int:
        return len(self._names)

    def sizes(self) -> None:
        """Return None: images have no length."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError for an image that can't be decoded."""
        file = self._root / self._names[index]
        return {"image": load_image(file, self._channels), "label": int(self._labels[index]), "path": str(file)}
