"""NIfTI-1 files (`.nii`, `.nii.gz`): a volume, its spacing and where it lies in the patient.

Source: the format's header definition, nifti1.h, https://nifti.nimh.nih.gov/nifti-1. One file with header and data;
pairs (`.hdr` and `.img`), NIfTI-2, extensions and complex numbers are not read. Sizes in a header are checked against
the file before anything is allocated. Not here: what the header's bytes mean (`nifti_header`).
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.volume.nifti_header import HEADER_BYTES, Header, parse_header
from deepseek.errors import DataError

MOST_BYTES = 4 << 30
"""The largest volume, unpacked, that is read unless the call allows more."""

_MOST_EXPANSION = 1032
"""What deflate can make of one byte at most (https://www.zlib.net/zlib_tech.html)."""

_CHUNK = 1 << 20


class Volume(NamedTuple):
    """A volume as it is in a file."""

    image: Tensor
    """(channels, depth, height, width): the file's last spatial axis first, as its bytes lie. Times, vector
    components and colours are channels. float32, or uint8 where the file holds unscaled bytes."""
    spacing: tuple[float, float, float]
    """Distance between voxels along depth, height and width, in the file's unit (nearly always mm)."""
    affine: NDArray[np.float64]
    """(4, 4): takes (i, j, k, 1), with voxel image[:, k, j, i], to x (right), y (front), z (up) in the file's unit."""


def read_nifti(path: str | Path, *, max_bytes: int = MOST_BYTES) -> Volume:
    """Return the volume of a NIfTI-1 file, gzipped or not, its values scaled as its header says.

    Raises DataError for what is no NIfTI-1 file, damaged, cut short, of a kind that is not read, or larger than
    `max_bytes` unpacked, before the memory for it is asked for.
    """
    values, header = _read(Path(path), max_bytes)
    if header.slope is not None:
        values = _scaled(values, header.slope, header.intercept)
    elif values.dtype != np.uint8:
        values = values.astype(np.float32, copy=False)
    return Volume(torch.from_numpy(values), header.spacing, header.affine)


def read_nifti_mask(path: str | Path, *, max_bytes: int = MOST_BYTES) -> Tensor:
    """Return the classes (depth, height, width), int64, of a mask kept as a NIfTI-1 file.

    Raises DataError like `read_nifti`, and for several channels or values that are no whole numbers.
    """
    values, header = _read(Path(path), max_bytes)
    if header.slope is not None:
        values = _scaled(values, header.slope, header.intercept)
    if len(values) != 1:
        raise DataError(f"{path} is no mask", found=f"{len(values)} channels", wanted="one")
    with np.errstate(invalid="ignore"):
        classes = values[0].astype(np.int64)
    if not np.array_equal(classes, values[0]):
        raise DataError(f"{path} is no mask", found="values that are no whole numbers", fix="read it with read_nifti")
    return torch.from_numpy(classes)


def _scaled(values: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Return slope * value + intercept, worked out in float64 a slice at a time."""
    scaled = np.empty(values.shape, dtype=np.float32)
    for place in np.ndindex(values.shape[:2]):
        scaled[place] = values[place].astype(np.float64) * slope + intercept
    return scaled


def _read(path: Path, max_bytes: int) -> tuple[NDArray[Any], Header]:
    """Return (channels, depth, height, width) in the machine's byte order, unscaled, and the header."""
    try:
        packed = path.stat().st_size
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
            header = parse_header(stream.read(HEADER_BYTES), path)
            _check_size(path, header, packed, zipped, max_bytes)
            _skip(stream, header.data_start - HEADER_BYTES, path)
            data = _read_exactly(stream, header.data_bytes, path)
            if zipped:
                stream.read(1)  # behind the last byte stands the checksum of all
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"can't read {path}", found=str(error) or type(error).__name__, fix="fetch the file again"
        ) from error
    return header.arrange(data), header


def _check_size(path: Path, header: Header, packed: int, zipped: bool, max_bytes: int) -> None:
    """Raise DataError where the header claims more than the file can hold or the caller allows."""
    claimed = header.data_start + header.data_bytes
    room = packed * _MOST_EXPANSION if zipped else packed
    if claimed > room:
        raise DataError(
            f"{path} is shorter than its header says",
            found=f"{packed:,} bytes{' of gzip' if zipped else ''}",
            wanted=f"{claimed:,} bytes for {header.shape} of {header.dtype.name}",
            fix="fetch the file again",
        )
    if claimed > max_bytes:
        raise DataError(
            f"{path} is larger than allowed",
            found=f"{claimed:,} bytes for {header.shape} of {header.dtype.name}",
            wanted=f"at most {max_bytes:,} bytes",
            fix="give max_bytes if you trust the file",
        )


def _skip(stream: IO[bytes], count: int, path: Path) -> None:
    while count:
        part = stream.read(min(count, _CHUNK))
        if not part:
            raise DataError(f"{path} ends before its data begins", fix="fetch the file again")
        count -= len(part)


def _read_exactly(stream: IO[bytes], count: int, path: Path) -> NDArray[np.uint8]:
    """Return the next `count` bytes; memory is used as they come, so a short file costs little."""
    data = np.empty(count, dtype=np.uint8)
    done = 0
    while done < count:
        part = stream.read(min(count - done, _CHUNK))
        if not part:
            raise DataError(f"{path} is cut short", found=f"{done:,} bytes of data", wanted=f"{count:,} bytes")
        data[done : done + len(part)] = np.frombuffer(part, dtype=np.uint8)
        done += len(part)
    return data
