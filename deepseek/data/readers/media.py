"""Decoding for the readers. The decoders load when the first file is read: opening a data set needs none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

Channels = Literal[1, 3, 4]


def load_image(path: Path, channels: Channels) -> Tensor:
    """Return an image, uint8 (channels, height, width). Raises DataError."""
    from deepseek.data.image.decode import read_image

    return read_image(path, channels=channels)


def load_mask(path: Path) -> Tensor:
    """Return a mask of class ids, int64 (height, width). Raises DataError."""
    from deepseek.data.image.decode import read_mask

    return read_mask(path)


def load_audio(path: Path) -> tuple[Tensor, int]:
    """Return (waveform float32 (time,), channels averaged; sample rate in Hz). Raises DataError."""
    from deepseek.data.audio.io import read_audio

    return read_audio(path)


def load_volume(path: Path) -> Tensor:
    """Return a NIfTI volume, float32 or uint8 (channels, depth, height, width). Raises DataError."""
    from deepseek.data.volume.nifti import read_nifti

    return read_nifti(path).image


def load_volume_mask(path: Path) -> Tensor:
    """Return the classes of a NIfTI mask, int64 (depth, height, width). Raises DataError."""
    from deepseek.data.volume.nifti import read_nifti_mask

    return read_nifti_mask(path)
