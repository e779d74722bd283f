"""Raw volumes: numbers one after another with no header, mapped into memory and read only where they are touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deepseek.errors import ConfigError, DataError


def read_raw(path: str | Path, shape: Sequence[int], dtype: DTypeLike, *, offset: int = 0) -> NDArray[Any]:
    """Return the file's numbers as a read-only array of `shape`, last axis fastest, mapped and not yet read.

    `dtype` is NumPy's name with its byte order, such as "<i2" (little) or ">f4" (big); `offset` counts bytes of a
    header to skip. A part becomes a tensor by `torch.from_numpy(volume[10:20].astype("f4"))`.

    Raises DataError unless the file has exactly the size that shape and dtype say, ConfigError for a wrong argument.
    """
    kind = _dtype(dtype)
    if not shape or not all(isinstance(side, int | np.integer) and side >= 1 for side in shape):
        raise ConfigError("no shape of a volume", found=repr(shape), wanted="whole numbers, each at least 1")
    if offset < 0:
        raise ConfigError("offset is out of range", found=offset, wanted="0 or more bytes")
    wanted = offset + math.prod(map(int, shape)) * kind.itemsize
    try:
        found = Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"can't read {path}", found=error.strerror) from error
    if found != wanted:
        raise DataError(
            f"{path} has another size than its shape says",
            found=f"{found:,} bytes",
            wanted=f"{wanted:,} bytes for {tuple(shape)} of {kind.name}" + (f" after {offset}" if offset else ""),
            fix="check shape, dtype and offset",
        )
    return np.memmap(path, dtype=kind, mode="r", offset=offset, shape=tuple(map(int, shape)))


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ConfigError(
            "unknown dtype", found=repr(dtype), wanted="a NumPy name such as '<i2' or 'float32'"
        ) from None
    if kind.kind not in "iufb":
        raise ConfigError("dtype is no number", found=str(kind), wanted="whole numbers or floats such as '<i2'")
    return kind
