"""`H5Dataset`: HDF5 files as a map-style data set for `torch.utils.data.DataLoader` and `DistributedDataset`.

Each process opens the files itself, when it first reads; chunks are unpacked once for all rows of a batch and kept in a
cache of bounded size. Not here: what a file holds (`h5_file`) and the reading (`h5_process`, `h5_chunks`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from deepseek.data.columns import StringColumn
from deepseek.data.loaders.h5_file import MAX_SAMPLE_BYTES, Field, check_field, open_h5, read_fields
from deepseek.data.loaders.h5_grid import Grid, Part
from deepseek.data.loaders.h5_process import H5Source, ProcessFiles
from deepseek.data.pipeline.stage import Sample
from deepseek.errors import ConfigError, DataError

_INHERITED: list[ProcessFiles] = []
"""Handles of a parent process. They are kept, since closing one here would act on what the HDF5 library copied."""


class H5Dataset(Dataset[Any]):
    """The rows of datasets of one or several HDF5 files, in order; or patches of big arrays.

    A sample is a dict with a tensor for each field (numbers of any shape; text as str), changed by `transform` where
    given. `fields` are names of datasets ("image", "train/image"), a mapping from the sample's keys to such names, or
    None: every dataset with rows at the top level. All have the same number of rows, and one shape in all files.

    `slices` is a slice of the samples, all files joined; or a tuple of it and a slice for each further axis: the
    part of each sample that is wanted (fields with fewer axes stay whole). With `patch`, samples are parts of that
    size of the last axes, `stride` apart (by default the patch's size; the last ones are moved inward so that all
    is covered), of arrays that lie alike in all fields.

    `cache_bytes` bounds the unpacked chunks that each process keeps. `threads` unpack gzip side by side: by default one
    in worker processes and as many as there are cores, up to 4, elsewhere. `swmr` reads files that another process
    writes: nothing is kept between reads, and `refresh` looks for new rows.

    Raises DataError naming the file for what is missing, no HDF5, truncated, of different lengths, or larger than
    `max_sample_bytes` a sample; ConfigError for a wrong argument; MissingExtraError without h5py.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        fields: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        slices: slice | tuple[slice, ...] | None = None,
        patch: tuple[int, ...] | None = None,
        stride: tuple[int, ...] | None = None,
        transform: Callable[[Sample], Any] | None = None,
        cache_bytes: int = 64 << 20,
        threads: int | None = None,
        swmr: bool = False,
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
    ) -> None:
        names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not names:
            raise ConfigError("H5Dataset needs a file", found="no path")
        if cache_bytes < 0 or (threads is not None and threads < 1) or max_sample_bytes < 1:
            raise ConfigError(
                "cache_bytes, threads or max_sample_bytes is too small",
                found=f"{cache_bytes}, {threads}, {max_sample_bytes}",
                wanted="cache_bytes at least 0, threads and max_sample_bytes at least 1",
            )
        both = slices if isinstance(slices, tuple) else (slices or slice(None),)
        if not both or not isinstance(both[0], slice):
            raise ConfigError("slices is wrong", found=repr(slices), wanted="a slice, or a tuple of slices")
        self._first, self._part = both[0], Part(both[1:], patch, stride)
        self._wanted = _named(fields)
        self._max_sample_bytes = max_sample_bytes
        self._transform = transform
        self._options = (cache_bytes, threads, swmr)
        self._paths = StringColumn(os.fspath(name) for name in names)
        self._process: ProcessFiles | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of all files again: new rows become samples. Raises DataError."""
        grids: list[Grid] = []
        chunk_rows: list[int] = []
        fields: tuple[Field, ...] = ()
        for name in self._paths:
            found, grid, rows = self._survey(Path(name))
            fields = fields or found
            if found != fields and self._part.patch is None:
                raise DataError(
                    f"the fields of {name} are not those of {self._paths[0]}",
                    found=str({field.name: field.shape for field in found}),
                    wanted=str({field.name: field.shape for field in fields}),
                )
            grids.append(grid)
            chunk_rows.append(rows)
        self.close()
        self._source = H5Source(self._paths, fields, tuple(grids), *self._options)
        self._ends: NDArray[np.int64] = np.cumsum([0, *(len(grid) for grid in grids)])
        self._chunk_rows = np.array(chunk_rows, dtype=np.int64)
        self._range = range(int(self._ends[-1]))[self._first]

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Any:
        """Return a sample. Raises IndexError, and DataError naming the file for what can't be read."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return samples, each chunk read once; torch's DataLoader calls this with the indices of a batch."""
        samples = self._files().samples([self._place(index) for index in indices])
        return samples if self._transform is None else [self._transform(sample) for sample in samples]

    def read(self, index: int) -> Sample:
        """Return a sample with its `path`, as readers do."""
        sample: Sample = self.read_many([index])[0]
        return sample

    def read_many(self, indices: Sequence[int]) -> list[Any]:
        """Return samples with their `path`, each chunk read once."""
        paths = [self._paths[self._place(index)[0]] for index in indices]
        samples = self.__getitems__(indices)
        return [
            {**sample, "path": path} if isinstance(sample, dict) else sample
            for sample, path in zip(samples, paths, strict=True)
        ]

    def sizes(self) -> NDArray[np.int64] | None:
        """Return None: the samples are of one size."""
        return None

    def block_starts(self) -> NDArray[np.int64]:
        """Return where the samples of each chunk begin, and their number at the end: (chunks + 1,) int64."""
        if self._part.patch is not None or len(self) == 0:
            return np.arange(len(self) + 1, dtype=np.int64)
        places = np.arange(self._range.start, self._range.stop, self._range.step)
        files = np.searchsorted(self._ends, places, side="right") - 1
        blocks = (places - self._ends[files]) // self._chunk_rows[files]
        new = (np.diff(files) != 0) | (np.diff(blocks) != 0)
        return np.concatenate(([0], np.flatnonzero(new) + 1, [len(places)])).astype(np.int64)

    def close(self) -> None:
        """Close what this process has opened; the next read opens it again."""
        if self._process is not None and self._process.pid == os.getpid():
            self._process.close()
            self._process = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def _survey(self, path: Path) -> tuple[tuple[Field, ...], Grid, int]:
        """Return the fields of a file, its samples, and how many rows its chunks have, by its header alone."""
        with open_h5(path, self._options[2]) as handle:
            fields = read_fields(handle, path, self._wanted)
            self._wanted = {field.key: field.name for field in fields}
            grid = Grid({field.key: (rows, *field.shape) for field, rows in fields.items()}, self._part, path)
            for field in fields:
                check_field(handle[field.name], path, grid.sample_shape(field.key), self._max_sample_bytes)
            chunks = [handle[field.name].chunks for field in fields]
            return tuple(fields), grid, max((sizes[0] for sizes in chunks if sizes), default=1)

    def _files(self) -> ProcessFiles:
        """Return what this process has open."""
        if self._process is None or self._process.pid != os.getpid():
            if self._process is not None:
                _INHERITED.append(self._process)
            self._process = ProcessFiles(self._source)
        return self._process

    def _place(self, index: int) -> tuple[int, int]:
        """Return file and row of a sample."""
        row = self._range[index]
        file = int(np.searchsorted(self._ends, row, side="right")) - 1
        return file, row - int(self._ends[file])


def _named(fields: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str] | None:
    if fields is None:
        return None
    found = dict(fields) if isinstance(fields, Mapping) else {name: name for name in _listed(fields)}
    if not found:
        raise ConfigError("H5Dataset needs a field", found="no name", wanted="names of datasets, or None for all")
    return found


def _listed(fields: str | Sequence[str]) -> Sequence[str]:
    return [fields] if isinstance(fields, str) else fields
