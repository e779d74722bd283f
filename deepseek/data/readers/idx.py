"""IDX files, as MNIST has them: arrays behind a header, plain or in gzip.

Source: the file format section of http://yann.lecun.com/exdb/mnist. The header's sizes are held against the file's
before anything is allocated.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import existing, shown
from deepseek.errors import DataError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_AT_MOST = 1032  # deflate can't make more bytes out of one


def read_idx(path: str | Path, max_bytes: int = 1 << 32, *, partial: bool = False) -> NDArray[np.generic]:
    """Return the array of an IDX file, in the machine's byte order; a name with .gz or not, the content decides.

    With `partial`, a file that is cut off gives the rows that are whole. Raises DataError for a wrong header, one that
    says more than the file can hold or than `max_bytes`, and data that are cut off or too long.
    """
    file = existing(path)
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            available = file.stat().st_size * (_GZIP_AT_MOST if packed else 1)
            raw.seek(0)
            if partial:
                content = zlib.decompressobj(31).decompress(raw.read(), max_bytes) if packed else raw.read(max_bytes)
                return _whole_rows(content, file)
            if not packed:
                return _read(raw, file, available, max_bytes)
            with gzip.GzipFile(fileobj=raw) as handle:
                return _read(handle, file, available, max_bytes)
    except EOFError:
        raise DataError(f"{shown(file)} is cut off", found="gzip data without their end", fix="copy it again") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"can't read {shown(file)}", found=str(error) or type(error).__name__) from None


def _read(
    handle: IO[bytes] | gzip.GzipFile | io.BytesIO, file: Path, available: int, max_bytes: int
) -> NDArray[np.generic]:
    magic = handle.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 8:
        raise DataError(f"{shown(file)} is no IDX file", found=f"first bytes {magic.hex(' ') or 'none'}")
    sides = handle.read(4 * magic[3])
    shape = tuple(int.from_bytes(sides[start : start + 4], "big") for start in range(0, 4 * magic[3], 4))
    dtype = np.dtype(_TYPES[magic[2]])
    size = math.prod(shape) * dtype.itemsize
    if len(sides) < 4 * magic[3] or size > available:
        raise DataError(
            f"{shown(file)} is cut off",
            found=f"a header for shape {shape}, {size} bytes",
            wanted=f"at most {available}",
        )
    if size > max_bytes:
        raise DataError(
            f"{shown(file)} is too large", found=f"shape {shape}, {size} bytes", wanted=f"at most {max_bytes}"
        )
    data = handle.read(size)
    if len(data) < size or handle.read(1):
        found = f"{len(data)} bytes of data" if len(data) < size else "more data"
        raise DataError(f"{shown(file)} does not fit its header", found=found, wanted=f"{size} bytes for shape {shape}")
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _whole_rows(content: bytes, file: Path) -> NDArray[np.generic]:
    """Return the rows of `content`, which may end early. Raises DataError where not even the header is there."""
    if len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{shown(file)} is cut off", found=f"{len(content)} bytes", wanted="at least its header")
    start = 4 + 4 * content[3]
    sides = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    row = math.prod(sides[1:]) * np.dtype(_TYPES.get(content[2], ">u1")).itemsize
    rows = min(sides[0] if sides else 0, (len(content) - start) // max(1, row))
    header = content[:4] + rows.to_bytes(4, "big") + content[8:start]
    whole = header + content[start : start + rows * row]
    return _read(io.BytesIO(whole), file, len(whole), len(whole))


class Idx:
    """Images with labels: `image` uint8 (1, height, width), `label` int, `path`; the arrays are held in memory.

    `path` is a folder with a file of images (three dimensions) and one of labels (one dimension), or a single file; of
    several sets in a folder (train, t10k) `part` names one by the beginning of its files. A file alone that holds no
    images gives `array`. `partial=True` takes what is whole of files that are cut off, and leaves images without
    label out.
    """

    def __init__(self, path: str | Path, *, part: str = "", partial: bool = False) -> None:
        survey = Survey.of(path)
        names = [name for name in survey.names("idx") if name.rpartition("/")[2].startswith(part)]
        arrays = [(survey.root / name, read_idx(survey.root / name, partial=partial)) for name in names]
        data = [one for one in arrays if one[1].ndim > 1]
        labels = [one for one in arrays if one[1].ndim == 1]
        if not data:
            data, labels = labels, []
        if len(data) != 1 or len(labels) > 1:
            raise DataError(
                f"{shown(path)} holds no single set of IDX files",
                found=", ".join(f"{shown(name)}" for name in names[:8]) or survey.summary(),
                wanted="one file of images and one of labels",
                fix="choose a set with part=, the beginning of its names" if names else None,
            )
        self._path, self._data = str(data[0][0]), data[0][1]
        self._labels = labels[0][1] if labels else None
        if partial and self._labels is not None:
            rows = min(len(self._data), len(self._labels))
            self._data, self._labels = self._data[:rows], self._labels[:rows]
        if self._labels is not None and len(self._labels) != len(self._data):
            raise DataError(
                f"{shown(path)}: images and labels differ in number",
                found=f"{len(self._data)} and {len(self._labels)}",
            )

    def __len__(self) -> int:
        return len(self._data)

    def sizes(self) -> None:
        """Return None: all samples are of one size."""

    def read(self, index: int) -> Sample:
        """Return sample `index`."""
        row = torch.from_numpy(np.array(self._data[index]))
        is_image = self._data.ndim == 3 and self._data.dtype == np.uint8
        sample: Sample = {"image": row[None]} if is_image else {"array": row}
        if self._labels is not None:
            sample["label"] = self._labels[index].item()
        return {**sample, "path": self._path}
