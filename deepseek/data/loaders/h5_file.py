"""One HDF5 file as a data set: which fields it has, checked by their headers alone, and how to open it.

The format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html. Not here: reading (`h5_blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deepseek.errors import DataError, did_you_mean
from deepseek.lazy import require

MAX_SAMPLE_BYTES = 1 << 30


class Field(NamedTuple):
    """A dataset of the file. `shape` is that of one row; `numeric` is False for text and ragged rows."""

    key: str
    name: str
    shape: tuple[int, ...]
    numeric: bool


def open_h5(path: Path, swmr: bool = False, cache_bytes: int = 0) -> Any:
    """Return the opened `h5py.File`. Raises DataError naming the file, MissingExtraError without h5py."""
    h5py = require("h5py", "data")
    try:
        return h5py.File(path, "r", swmr=swmr, libver="latest" if swmr else None, rdcc_nbytes=max(cache_bytes, 1 << 20))
    except (OSError, RuntimeError) as error:
        if not path.is_file():
            raise DataError("there is no such HDF5 file", found=str(path)) from None
        if not h5py.is_hdf5(path):
            raise DataError(f"{path} is no HDF5 file", found="another signature", wanted="\\x89HDF") from None
        raise DataError(
            f"the HDF5 file {path} can't be opened",
            found=str(error),
            fix="copy it again if it is truncated; pass swmr=True while another process writes it",
        ) from error


def read_fields(handle: Any, path: Path, wanted: Mapping[str, str] | None) -> dict[Field, int]:
    """Return the fields, and how many rows each has.

    `wanted` maps keys of a sample to names in the file; None takes every dataset of the top level that has rows.
    Raises DataError for a missing field, and for one that is neither numbers nor text.
    """
    h5py = require("h5py", "data")
    if wanted is None:
        wanted = {key: key for key in handle if isinstance(handle.get(key), h5py.Dataset) and handle[key].shape}
        if not wanted:
            raise DataError(f"{path} has no dataset with rows at its top level", fix="name the fields: fields=('a/b',)")
    fields = {}
    for key, name in wanted.items():
        found = _find(handle, name)
        if not isinstance(found, h5py.Dataset) or not found.shape:
            names: list[str] = []
            handle.visititems(lambda name, item, names=names: _note(names, name, item, h5py))
            problem = f"{path} has no dataset '{name}' with rows"
            raise DataError(problem, fix=did_you_mean(name, names) if names else None)
        if found.dtype.kind == "V":
            raise DataError(
                f"the field '{name}' of {path} is compound", found=str(found.dtype), wanted="numbers or text"
            )
        fields[Field(key, name, tuple(found.shape[1:]), found.dtype.kind in "biufc")] = int(found.shape[0])
    return fields


def check_field(dataset: Any, path: Path, shape: tuple[int, ...], limit: int) -> None:
    """Check what a dataset's header says of a sample of this shape.

    Raises DataError for numbers that torch has no type for, and for more than `limit` bytes.
    """
    dtype = dataset.dtype
    try:
        if dtype.kind in "biufc":
            torch.from_numpy(np.empty(0, dtype.newbyteorder("=")))
    except TypeError:
        raise DataError(f"the field '{dataset.name}' of {path} has numbers unknown to torch", found=dtype) from None
    size = math.prod(shape) * dtype.itemsize
    if size > limit:
        raise DataError(
            f"a sample of '{dataset.name}' of {path} is too large",
            found=f"{size} bytes, shape {shape}",
            wanted=f"at most max_sample_bytes = {limit}",
            fix="read parts of it by patch=(...) or slices=(...), or raise max_sample_bytes",
        )


def _find(handle: Any, name: str) -> Any:
    """Return what has this name, or None; a link that leads nowhere, or a damaged one, counts as missing."""
    try:
        return handle.get(name)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


def _note(names: list[str], name: str, item: Any, h5py: Any) -> bool | None:
    """Collect the names of datasets, up to a bound; any value but None ends the visit."""
    if isinstance(item, h5py.Dataset):
        names.append(name)
    return True if len(names) >= 1000 else None
