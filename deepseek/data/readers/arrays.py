"""NPY and NPZ files: arrays whose first axis counts the samples.

Source: the NPY format (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). Pickled objects are
never loaded. Not here: HDF5 (`deepseek.utils.data.H5Dataset`).
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import shown, stem
from deepseek.errors import ConfigError, DataError

_MAX_FILES = 64


class Arrays:
    """Samples out of one NPY or NPZ file, or out of a folder of them: one key for each array, and `path`.

    All arrays have one length, their first axis; of an NPZ file the arrays' names are the keys, of an NPY file its
    name. `keys={"image": "x_train", "label": "y_train"}` chooses and renames. A single number becomes an int or float,
    anything else a tensor. NPY files are mapped and read row by row; NPZ files are held in memory, up to `max_bytes`.

    Raises DataError for files that are cut off, hold objects or other types than numbers, or differ in length.
    """

    def __init__(self, path: str | Path, *, keys: Mapping[str, str] | None = None, max_bytes: int = 1 << 34) -> None:
        survey = Survey.of(path)
        packed = set(survey.names("npz"))
        files = sorted({*survey.names("npy"), *packed})
        if not 0 < len(files) <= _MAX_FILES:
            raise DataError(
                f"{shown(path)} holds no arrays to be read together", found=survey.summary(), wanted="NPY or NPZ files"
            )
        self._path = str(survey.root / files[0]) if len(files) == 1 else str(survey.root)
        self._mapped: dict[str, str] = {}
        self._held: dict[str, NDArray[Any]] = {}
        for name in files:
            self._add(survey.root / name, name in packed, max_bytes)
        if keys is not None:
            self._choose(keys)
        self._open: dict[str, NDArray[Any]] = {name: _map(Path(file)) for name, file in self._mapped.items()}
        lengths = {name: len(values) for name, values in {**self._held, **self._open}.items() if values.ndim}
        if len(set(lengths.values())) != 1 or len(lengths) < len(self._held) + len(self._open):
            raise DataError(
                f"the arrays of {shown(path)} differ in length",
                found=", ".join(f"{name}: {length}" for name, length in lengths.items()),
                wanted="one length, the number of samples",
                fix="choose arrays with keys=",
            )
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def sizes(self) -> None:
        """Return None: all samples are of one size."""

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError where a file is gone."""
        if not self._open:
            self._open = {name: _map(Path(file)) for name, file in self._mapped.items()}
        sample: Sample = {name: _value(values[index]) for name, values in {**self._held, **self._open}.items()}
        return {**sample, "path": self._path}

    def _add(self, file: Path, packed: bool, max_bytes: int) -> None:
        if packed:
            for name, values in _load_npz(file, max_bytes).items():
                self._refuse_twice(name, file)
                self._held[name] = values
        else:
            self._refuse_twice(stem(file.name), file)
            self._mapped[stem(file.name)] = str(file)

    def _refuse_twice(self, name: str, file: Path) -> None:
        if name in self._held or name in self._mapped:
            raise DataError(f"two arrays are called '{name}'", found=shown(file))

    def _choose(self, keys: Mapping[str, str]) -> None:
        known = sorted({**self._held, **self._mapped})
        for name in keys.values():
            if name not in known:
                raise ConfigError("keys names no array", found=repr(name), wanted=", ".join(known)[:200])
        self._held = {key: self._held[name] for key, name in keys.items() if name in self._held}
        self._mapped = {key: self._mapped[name] for key, name in keys.items() if name in self._mapped}


def _value(row: Any) -> Any:
    return torch.from_numpy(np.array(row)) if np.ndim(row) else row.item()


def _map(file: Path) -> NDArray[Any]:
    try:
        with open(file, "rb") as handle:
            shape, fortran, dtype = _header(handle)
            start, size = handle.tell(), math.prod(shape) * dtype.itemsize
            if dtype.hasobject or start + size > file.stat().st_size:
                raise ValueError(f"{dtype}, shape {shape}: {size} bytes, more than the file has")
        if not size:
            return _numbers(np.empty(shape, dtype), file)
        values = np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"can't read {shown(file)}", found=str(error)[:200], wanted="an NPY file of numbers") from None
    return _numbers(values, file)


def _numbers(values: NDArray[Any], where: str | Path) -> NDArray[Any]:
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise DataError(f"{shown(where)} holds no numbers", found=str(values.dtype), wanted="bool, ints or floats")
    return values


def _load_npz(file: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file, headers and sizes checked before anything large is allocated."""
    arrays: dict[str, NDArray[Any]] = {}
    left = max_bytes
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as handle:
                    shape, order, dtype = _header(handle)
                    size = math.prod(shape) * dtype.itemsize
                    left -= size
                    if dtype.hasobject or left < 0 or size > entry.file_size:
                        raise DataError(
                            f"{shown(file)}: {entry.filename} can't be held",
                            found=f"{dtype}, shape {shape}, {size} bytes in an entry of {entry.file_size}",
                            wanted=f"numbers, at most {max_bytes} bytes together",
                        )
                    data = handle.read(size)
                    if len(data) < size:
                        raise DataError(
                            f"{shown(file)}: {entry.filename} is cut off", found=f"{len(data)} of {size} bytes"
                        )
                values = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if order else "C")
                native = values.astype(dtype.newbyteorder("="), copy=False)
                arrays[entry.filename.removesuffix(".npy")] = _numbers(native, f"{file}: {entry.filename}")
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"can't read {shown(file)}", found=str(error)[:200], wanted="an NPZ file of numbers") from None
    return arrays


def _header(handle: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, whether columns come first, dtype). Raises ValueError for whatever else stands there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that an old NumPy wrote
            version = npy.read_magic(handle)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(handle)
    except (zipfile.BadZipFile, zlib.error, OSError):
        raise
    except Exception as error:  # the header is Python source: any of the parser's errors may come
        raise ValueError(f"no NPY header: {error}") from None
    if any(side < 0 for side in shape):
        raise ValueError(f"negative shape {shape}")
    return shape, fortran, dtype
