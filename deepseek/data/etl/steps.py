"""The steps of a plan, as plain values: what is read, what happens to the rows, what is written.

Each checks its own arguments when it is made, so a plan that exists can only fail on data. Not here: the chain of
steps (`plan`) and doing any of it (`operators`, `task`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from deepseek.data.etl.rows import Row
from deepseek.errors import ConfigError, did_you_mean

InputFormat = Literal["jsonl", "text", "csv", "parquet", "audio", "image"]
OutputFormat = Literal["jsonl", "text", "csv", "parquet", "wav", "png"]
Load = Literal["values", "bytes", "path"]
DedupMethod = Literal["exact", "simhash", "minhash"]

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MOST_BLOCK = 1 << 30


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown {what}", found=repr(value), wanted=did_you_mean(str(value), choices))


def _check_names(what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{what} takes names of columns", found=repr(name), wanted="such as 'text'")


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError("seed is out of range", found=repr(seed), wanted="0 to 2**63 - 1")


class Step(ABC):
    """A step between reading and writing."""

    @abstractmethod
    def words(self) -> str:
        """Return the step as it was written, short."""


@dataclass(frozen=True)
class Read:
    """What is read, and in which blocks."""

    paths: tuple[str, ...]
    format: InputFormat | None = None
    block_bytes: int = 8 << 20
    max_line_bytes: int = 32 << 20
    header: bool | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    load: Load = "values"

    def __post_init__(self) -> None:
        if not self.paths or not all(isinstance(path, str) and path for path in self.paths):
            raise ConfigError("read takes paths", found=repr(self.paths), wanted="a file, a folder or a pattern")
        if self.format is not None:
            _check_choice("format to read", self.format, get_args(InputFormat))
        _check_choice("load", self.load, get_args(Load))
        if not 16 <= self.block_bytes <= _MOST_BLOCK:
            raise ConfigError("block_bytes is out of range", found=self.block_bytes, wanted=f"16 to {_MOST_BLOCK}")
        if not 1 <= self.max_line_bytes <= _MOST_BLOCK:
            raise ConfigError("max_line_bytes is out of range", found=self.max_line_bytes, wanted=f"1 to {_MOST_BLOCK}")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n '):
            raise ConfigError("a delimiter is one character", found=repr(self.delimiter), wanted="such as ','")
        try:
            plain = 'a,"\n'.encode(self.encoding) == b'a,"\n'
        except LookupError:
            plain = False
        if not plain:
            raise ConfigError("an encoding that can't be used", found=repr(self.encoding), wanted="such as 'utf-8'")

    def words(self) -> str:
        """Return the step as it was written, short."""
        shown = ", ".join(map(repr, self.paths[:3])) + (", ..." if len(self.paths) > 3 else "")
        return f"read({shown}{'' if self.format is None else f', format={self.format!r}'})"


@dataclass(frozen=True)
class RowFunction(Step):
    """A step that calls a function with a row."""

    function: Callable[[Row], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(
                f"{self._verb()} takes a function of a row", found=repr(self.function)[:80], wanted="def f(row): ..."
            )

    def _verb(self) -> str:
        return {"Map": "map", "Filter": "filter", "FlatMap": "flat_map"}[type(self).__name__]

    def words(self) -> str:
        """Return the step as it was written, short."""
        function = getattr(self.function, "func", self.function)
        return f"{self._verb()}({getattr(function, '__qualname__', type(function).__name__)})"


@dataclass(frozen=True)
class Map(RowFunction):
    """One row to one row."""


@dataclass(frozen=True)
class Filter(RowFunction):
    """Rows for which the function says yes."""


@dataclass(frozen=True)
class FlatMap(RowFunction):
    """One row to any number of rows."""


@dataclass(frozen=True)
class Dedup(Step):
    """The first of each set of equal or nearly equal rows."""

    key: tuple[str, ...] = ()
    method: DedupMethod = "exact"
    threshold: float = 0.7

    def __post_init__(self) -> None:
        _check_names("dedup", self.key)
        _check_choice("method of dedup", self.method, get_args(DedupMethod))
        if self.method != "exact" and len(self.key) != 1:
            raise ConfigError(
                f"dedup by {self.method} compares one column of text", found=repr(self.key), fix="pass key='text'"
            )
        if not 0 < self.threshold <= 1:
            raise ConfigError("threshold is out of range", found=self.threshold, wanted="more than 0, up to 1")

    def words(self) -> str:
        """Return the step as it was written, short."""
        near = "" if self.method == "exact" else f", threshold={self.threshold:g}"
        key = None if not self.key else self.key[0] if len(self.key) == 1 else self.key
        return f"dedup(key={key!r}, method={self.method!r}{near})"


@dataclass(frozen=True)
class Split(Step):
    """A side for each row, by a hash of its key alone."""

    shares: tuple[tuple[str, float], ...]
    by: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("split", self.by)
        _check_seed(self.seed)
        for name, share in self.shares:
            if not isinstance(name, str) or _SPLIT_NAME.fullmatch(name) is None:
                raise ConfigError(
                    "a split becomes a folder", found=repr(name)[:80], wanted="letters, digits, '_', '-', '.'"
                )
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ConfigError(f"the share of '{name}' is out of range", found=repr(share), wanted="0 to 1")
        total = math.fsum(share for _, share in self.shares)
        if not abs(total - 1) < 1e-9:
            raise ConfigError("the shares of split don't add up to 1", found=total, wanted="{'train': 0.9, 'val': 0.1}")

    def words(self) -> str:
        """Return the step as it was written, short."""
        by = None if not self.by else self.by[0] if len(self.by) == 1 else self.by
        return f"split({dict(self.shares)}, by={by!r}, seed={self.seed})"


@dataclass(frozen=True)
class Shuffle(Step):
    """All rows in another order."""

    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def words(self) -> str:
        """Return the step as it was written, short."""
        return f"shuffle(seed={self.seed})"


@dataclass(frozen=True)
class Write:
    """Where the rows go, and in which form."""

    path: str
    format: OutputFormat = "jsonl"
    columns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    key: str = "text"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError("write takes a folder", found=repr(self.path), wanted="such as 'out/'")
        _check_choice("format to write", self.format, get_args(OutputFormat))
        _check_names("write", self.columns)
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError("a column comes twice", found=", ".join(self.columns))
        if self.columns and self.format not in ("jsonl", "csv", "parquet"):
            raise ConfigError(f"columns have no effect for {self.format}", fix="leave columns out")
        if self.types and self.format != "parquet":
            raise ConfigError("types of columns are for parquet", found=f"format {self.format}", fix="pass names alone")

    def words(self) -> str:
        """Return the step as it was written, short."""
        columns = f", columns={dict(zip(self.columns, self.types, strict=True)) if self.types else self.columns}"
        return f"write({self.path!r}, format={self.format!r}{columns if self.columns else ''})"


class Plan(Protocol):
    """What is read, the steps, and what is written: the parts of a `DataPipeline`."""

    @property
    def source(self) -> Read: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def sink(self) -> Write | None: ...
