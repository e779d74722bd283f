"""Images with a mask each, paired by name. Not here: masks inside COCO files (`coco`), volumes (`nifti_folder`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.media import Channels, load_image, load_mask
from deepseek.data.readers.pairs import pair_by_name, refuse_alone
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import shown
from deepseek.errors import ConfigError, DataError


class SegmentationFolder:
    """Pairs of image and mask: `image` uint8 (`channels`, height, width), `mask` int64 (height, width), `path`.

    The folders are found by their usual names (images, img, imagesTr ...; labels, masks, gt ...), or named with
    `inputs` and `targets`; masks may also lie beside the images as `7_mask.png`. A mask's values are class ids;
    `mask_values=(0, 255)` maps the values that files have to 0, 1, ... `partial=True` leaves images without mask out.

    Raises DataError for files without partner, for a mask of another size than its image, and for values that are not
    in `mask_values`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        inputs: str | None = None,
        targets: str | None = None,
        mask_values: Sequence[int] | None = None,
        partial: bool = False,
        channels: Channels = 3,
    ) -> None:
        survey = Survey.of(path)
        pairs, alone = pair_by_name(survey.names("image"), inputs, targets)
        refuse_alone(shown(path), [] if partial else alone, len(pairs))
        self._root, self._channels = survey.root, channels
        self._images = StringColumn(image for image, _ in pairs)
        self._masks = StringColumn(mask for _, mask in pairs)
        self._values: NDArray[np.int64] | None = None
        if mask_values is not None:
            self._values = np.array(mask_values, dtype=np.int64)
            if len(np.unique(self._values)) != len(self._values) or not len(self._values):
                raise ConfigError("mask_values needs distinct values", found=mask_values, wanted="such as (0, 255)")

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self) -> None:
        """Return None: images have no length."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        file, mask_file = self._root / self._images[index], self._root / self._masks[index]
        image, mask = load_image(file, self._channels), load_mask(mask_file)
        if mask.shape != image.shape[-2:]:
            raise DataError(
                f"{shown(mask_file)} does not fit its image",
                found=f"mask {tuple(mask.shape)}, image {tuple(image.shape[-2:])}",
                wanted="the same height and width",
            )
        if self._values is not None:
            mask = torch.from_numpy(self._classes(mask.numpy(), mask_file))
        return {"image": image, "mask": mask, "path": str(file)}

    def _classes(self, mask: NDArray[np.int64], file: Path) -> NDArray[np.int64]:
        values = self._values if self._values is not None else np.unique(mask)
        order = values.argsort()
        place = np.searchsorted(values[order], mask).clip(max=len(values) - 1)
        wrong = values[order][place] != mask
        if wrong.any():
            raise DataError(
                f"{shown(file)} has a value that is not in mask_values",
                found=int(mask[wrong][0]),
                wanted=", ".join(str(value) for value in values.tolist()),
            )
        classes: NDArray[np.int64] = order[place].astype(np.int64)
        return classes
