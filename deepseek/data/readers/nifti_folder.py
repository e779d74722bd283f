"""Folders of NIfTI volumes, alone or with a mask each. Not here: the format itself (`deepseek.data.volume.nifti`)."""

from __future__ import annotations

from pathlib import Path

import torch

from deepseek.data.columns import StringColumn
from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.media import load_volume, load_volume_mask
from deepseek.data.readers.pairs import pair_by_name, refuse_alone
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import shown
from deepseek.errors import DataError


class NiftiFolder:
    """Volumes: `image` float32 (channels, depth, height, width), `path`, and `mask` int64 (depth, height, width).

    Masks are found as in `SegmentationFolder`: `imagesTr/7.nii.gz` with `labelsTr/7.nii.gz`, or `7_seg.nii.gz` beside
    `7.nii.gz`. Where no file has a mask, samples have none; `partial=True` leaves volumes without mask out.
    Raises DataError for files without partner and for a mask of another size than its volume.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        inputs: str | None = None,
        targets: str | None = None,
        partial: bool = False,
    ) -> None:
        survey = Survey.of(path)
        names = survey.names("nifti")
        if not names:
            raise DataError(f"{shown(path)} holds no NIfTI files", found=survey.summary())
        self._root = survey.root
        pairs, alone = pair_by_name(names, inputs, targets)
        if pairs:
            refuse_alone(shown(path), [] if partial else alone, len(pairs))
        self._images = StringColumn([image for image, _ in pairs] or names)
        self._masks = StringColumn(mask for _, mask in pairs) if pairs else None

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self) -> None:
        """Return None: volumes are cut to patches rather than padded."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError."""
        file = self._root / self._images[index]
        image = load_volume(file).to(torch.float32)
        sample: Sample = {"image": image, "path": str(file)}
        if self._masks is not None:
            mask_file = self._root / self._masks[index]
            mask = load_volume_mask(mask_file)
            if mask.shape != image.shape[1:]:
                raise DataError(
                    f"{shown(mask_file)} does not fit its volume",
                    found=f"mask {tuple(mask.shape)}, volume {tuple(image.shape[1:])}",
                    wanted="the same size",
                )
            sample["mask"] = mask
        return sample
