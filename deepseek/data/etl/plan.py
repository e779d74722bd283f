"""A plan from files to files: read, change, deduplicate, split, shuffle, write, on one machine or on Ray.

Nothing happens until `run`. Rows are dicts; functions see one at a time and must depend on the row alone, since a row
may be worked on again after a kill. Not here: what a row means for training (`deepseek.data.pipeline`), cleaning rules
(`deepseek.data.cooker`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from deepseek.data.etl.report import Progress, RunReport
from deepseek.data.etl.rows import Row
from deepseek.data.etl.steps import (
    Dedup,
    DedupMethod,
    Filter,
    FlatMap,
    InputFormat,
    Load,
    Map,
    OutputFormat,
    Read,
    Shuffle,
    Split,
    Step,
    Write,
)
from deepseek.errors import ConfigError

Engine = Literal["local", "ray"]


@dataclass(frozen=True, repr=False)
class DataPipeline:
    """Steps from `read` to `write`; each method returns a longer plan, and the plan it is called on stays as it is.

    >>> plan = DataPipeline.read("in/*.jsonl").filter(long).dedup(key="text").shuffle(seed=0).write("out")
    >>> report = plan.run(workers=8)
    """

    source: Read
    steps: tuple[Step, ...] = ()
    sink: Write | None = None

    @classmethod
    def read(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        format: InputFormat | None = None,
        *,
        block_bytes: int = 8 << 20,
        max_line_bytes: int = 32 << 20,
        header: bool | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        load: Load = "values",
    ) -> DataPipeline:
        """Read files, the files of folders, or those that a pattern such as "in/*.jsonl" matches, in order of names.

        | format | a row |
        |---|---|
        | "jsonl" | the object of a line |
        | "text" | `text`: a line without its end |
        | "csv" | a cell for each column, as text; `header`, `delimiter`, `encoding` as in `CsvTable` |
        | "parquet" | a value for each column |
        | "audio" | `path`, `sample_rate`, `samples` float32 ([channels,] time) of a file |
        | "image" | `path`, `image` uint8 (3, height, width) of a file |

        Left out, the format is found by each file's content and name. `load` "path" gives the path of a sound or image
        alone, "bytes" `bytes` as they are in the file. Blank lines are passed over. `block_bytes` is about how much is
        worked on at once; the output's files depend on it. A line beyond `max_line_bytes` is a bad row.
        """
        many = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        names = tuple(os.fspath(path) for path in many)
        return cls(Read(names, format, block_bytes, max_line_bytes, header, delimiter, encoding, load))

    def map(self, function: Callable[[Row], Row]) -> DataPipeline:
        """Replace each row by what `function` returns for it, a dict."""
        return self._with(Map(function))

    def filter(self, function: Callable[[Row], object]) -> DataPipeline:
        """Keep the rows for which `function` returns something true."""
        return self._with(Filter(function))

    def flat_map(self, function: Callable[[Row], Iterable[Row]]) -> DataPipeline:
        """Replace each row by the rows that `function` returns or yields for it."""
        return self._with(FlatMap(function))

    def dedup(
        self, key: str | Sequence[str] | None = None, method: DedupMethod = "exact", threshold: float = 0.7
    ) -> DataPipeline:
        """Keep the first of rows that are alike; the others keep their order.

        "exact" compares the values of the columns `key` (the whole row without it), in memory that does not grow with
        the data. "simhash" and "minhash" find texts whose n-grams overlap by `threshold` (`cooker.dedup`), one after
        the other, with about 300 bytes of memory for each text kept.
        """
        return self._with(Dedup(_names(key), method, threshold))

    def split(self, shares: Mapping[str, float], by: str | Sequence[str] | None = None, seed: int = 0) -> DataPipeline:
        """Give each row to one of the folders named by `shares`, by a hash of its columns `by` (of the whole row).

        Rows with the same value stay together, and a row keeps its side when data is added.
        """
        if any(isinstance(step, Split) for step in self.steps):
            raise ConfigError("a plan has one split", found="a second one", fix="name all shares in one split")
        return self._with(Split(tuple(dict(shares).items()), _names(by), seed))

    def shuffle(self, seed: int = 0) -> DataPipeline:
        """Put all rows into an order that depends on `seed` and the places of the rows, through the disk."""
        return self._with(Shuffle(seed))

    def write(
        self,
        path: str | os.PathLike[str],
        format: OutputFormat = "jsonl",
        *,
        columns: Sequence[str] | Mapping[str, str] = (),
        key: str = "text",
    ) -> DataPipeline:
        """Write files `part-00000.jsonl`, ... into the folder `path`, below a folder for each split.

        `columns` chooses and orders the columns; left out, those of the first row. For Parquet it may be a dict to
        Arrow's names of types, `{"id": "int64"}`. "text" writes the column `key`. "wav" writes the column `samples`
        at `sample_rate`, "png" the column `image`: one file a row in folders `part-00000`, with a `rows.jsonl` of the
        other columns and `path` (existing JSON-lines readers take such folders).
        """
        if self.sink is not None:
            raise ConfigError("a plan has one write", found=f"a second one, after {self.sink.words()}")
        types = tuple(columns.values()) if isinstance(columns, Mapping) else ()
        return replace(self, sink=Write(os.fspath(path), format, _names(tuple(columns)), types, key))

    def run(
        self,
        engine: Engine = "local",
        *,
        workers: int | None = None,
        resume: bool = True,
        bad_rows: str | os.PathLike[str] | None = None,
        max_bad_share: float = 1.0,
        progress: Callable[[Progress], None] | None = None,
    ) -> RunReport:
        """Do it; return what was read, dropped and written.

        The output is the same bytes whatever the engine, the number of `workers` and the kills in between. A run that
        was interrupted goes on with the blocks that are not done; `resume=False` throws away what it had. A plan,
        function or input that has changed since is refused.

        The first bad row ends the run; with `bad_rows`, a JSONL file, bad rows go there with file, line, step and
        reason, unless they are more than `max_bad_share` of the rows read.

        With more than one worker, processes are spawned: a script needs `if __name__ == "__main__":`. "ray" uses Ray
        Data (extra [cluster]); on several machines input and output must be on a disk that all see.

        Raises ConfigError for a plan that can't run, DataError for data, StorageError when the disk refuses,
        RunLockedError while another run writes there.
        """
        from deepseek.data.etl.run import Options, run_plan

        share = float(max_bad_share)
        options = Options(engine, workers, resume, None if bad_rows is None else os.fspath(bad_rows), share, progress)
        return run_plan(self, options)

    def __repr__(self) -> str:
        words = [self.source.words(), *(step.words() for step in self.steps)]
        words += [self.sink.words()] if self.sink is not None else []
        return "\n".join(["DataPipeline", *(f"  {number}. {word}" for number, word in enumerate(words, 1))])

    def _with(self, step: Step) -> DataPipeline:
        if self.sink is not None:
            raise ConfigError("write is the last step", found=f"{step.words()} after it", fix="write at the end")
        return replace(self, steps=(*self.steps, step))


def _names(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
