"""The 348 bytes of a NIfTI-1 header: shape, kind of numbers, scaling, spacing and position.

Source: nifti1.h, https://nifti.nimh.nih.gov/nifti-1, whose field names and numbers stand in the comments. Not here:
reading files (`nifti`).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import DataError

HEADER_BYTES = 348
_DATA_START = 352

_KINDS = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    128: "u1",  # RGB24, three bytes for each voxel
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    2304: "u1",  # RGBA32, four bytes for each voxel
}
_COLOURS = {128: 3, 2304: 4}


class Header(NamedTuple):
    """What a header says about its data."""

    shape: tuple[int, ...]
    """Sides as they stand in the file, fastest first: x, y, z, t and more."""
    dtype: np.dtype[Any]
    colours: int
    data_start: int
    slope: float | None
    """Values are slope * stored + intercept; None where the header asks for no scaling."""
    intercept: float
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]

    @property
    def data_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.colours * self.dtype.itemsize

    def arrange(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the bytes as (channels, depth, height, width) in the machine's byte order."""
        values = data.view(self.dtype).astype(self.dtype.newbyteorder("="), copy=False)
        x, y, z = (*self.shape, 1, 1)[:3]
        voxels = values.reshape(-1, z, y, x, self.colours)
        return np.ascontiguousarray(np.moveaxis(voxels, -1, 1)).reshape(-1, z, y, x)


def parse_header(raw: bytes, path: Path) -> Header:
    """Return what the first 348 bytes of the file `path` say. Raises DataError naming it for what can't be read."""
    if len(raw) < HEADER_BYTES:
        raise DataError(f"{path} is too short for a NIfTI-1 header", found=f"{len(raw)} bytes", wanted="348 or more")
    order = _byte_order(raw, path)
    dim = struct.unpack_from(f"{order}8h", raw, 40)
    datatype = struct.unpack_from(f"{order}h", raw, 70)[0]
    pixdim = struct.unpack_from(f"{order}8f", raw, 76)
    start, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise DataError(f"{path} has no shape of a volume", found=f"dim = {dim}", wanted="1 to 7 sides, each >= 1")
    if datatype not in _KINDS:
        raise DataError(
            f"{path} holds numbers of a kind that is not read",
            found=f"datatype {datatype}",
            wanted="whole numbers, float32, float64, RGB24 or RGBA32",
        )
    if not math.isfinite(start) or start != int(start) or (start != 0 and start < HEADER_BYTES):
        raise DataError(f"{path} says no place for its data", found=f"vox_offset {start}", wanted="352 or more")
    scales = math.isfinite(slope) and slope != 0 and datatype not in _COLOURS
    if scales and not math.isfinite(intercept):
        raise DataError(f"{path} has no scaling that can be used", found=f"scl_inter {intercept}")
    sides = [abs(side) if math.isfinite(side) and side else 1.0 for side in (*pixdim[1 : min(dim[0], 3) + 1], 1.0, 1.0)]
    return Header(
        shape=tuple(dim[1 : dim[0] + 1]),
        dtype=np.dtype(order + _KINDS[datatype]),
        colours=_COLOURS.get(datatype, 1),
        data_start=int(start) or _DATA_START,
        slope=float(slope) if scales and (slope, intercept) != (1.0, 0.0) else None,
        intercept=float(intercept),
        spacing=(sides[2], sides[1], sides[0]),
        affine=_affine(raw, order, (sides[0], sides[1], sides[2]), pixdim[0]),
    )


def _byte_order(raw: bytes, path: Path) -> str:
    """Return "<" or ">", by the header's own size, its first number."""
    sizes = {order: struct.unpack_from(f"{order}i", raw)[0] for order in "<>"}
    order = next((order for order, size in sizes.items() if size == HEADER_BYTES), None)
    if 540 in sizes.values():
        raise DataError(f"{path} is a NIfTI-2 file", wanted="NIfTI-1", fix="convert it, with nibabel for one")
    if raw[344:348] == b"ni1\0":
        raise DataError(f"{path} is half of a pair (.hdr and .img)", wanted="one file, .nii or .nii.gz")
    if order is None or raw[344:348] != b"n+1\0":
        found = f"header size {sizes['<']}, magic {raw[344:348]!r}"
        raise DataError(f"{path} is no NIfTI-1 file", found=found, wanted="348 and 'n+1'")
    return order


def _affine(raw: bytes, order: str, sides: tuple[float, float, float], qfac: float) -> NDArray[np.float64]:
    """Return the (4, 4) map of voxel numbers to positions: of sform where it is set, else of qform, else the sides."""
    qform, sform = struct.unpack_from(f"{order}2h", raw, 252)
    affine = np.eye(4)
    if sform > 0:
        affine[:3] = np.array(struct.unpack_from(f"{order}12f", raw, 280)).reshape(3, 4)
    elif qform > 0:
        b, c, d, *shift = struct.unpack_from(f"{order}6f", raw, 256)
        flip = -1.0 if qfac < 0 else 1.0  # pixdim[0]: the third axis of a left-handed volume is turned round
        affine[:3, :3] = _rotation(b, c, d) * (sides[0], sides[1], sides[2] * flip)
        affine[:3, 3] = shift
    else:
        affine[:3, :3] = np.diag(sides)
    return affine


def _rotation(b: float, c: float, d: float) -> NDArray[np.float64]:
    """Return the rotation of the unit quaternion a + bi + cj + dk, of which a >= 0 is left out in the file."""
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # a half turn, rounded
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
