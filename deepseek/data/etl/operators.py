"""The steps that look at one row: what they do to a list of records, and what they count.

An error of a function is a bad row, named by step and row. Not here: steps that compare rows (`exchange`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from deepseek.data.etl.bad_rows import BadRows
from deepseek.data.etl.rows import Record, hash_of, key_getter
from deepseek.data.etl.steps import Filter, FlatMap, Map, Split, Step
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DeepSeekError

Operator = Callable[[list[Record]], list[Record]]
Counts = dict[int, list[int]]
"""For each step's number: rows in, rows out, bad ones."""


def operators(steps: Sequence[tuple[int, Step]], bad: BadRows, counts: Counts) -> list[Operator]:
    """Return the functions of the steps, given with their numbers; bad rows go to `bad`, counts to `counts`."""
    return [_operator(number, step, bad, counts.setdefault(number, [0, 0, 0])) for number, step in steps]


def _operator(number: int, step: Step, bad: BadRows, count: list[int]) -> Operator:
    each = _each_of(step)
    name = f"{number}. {step.words()}"

    def run(records: list[Record]) -> list[Record]:
        done: list[Record] = []
        refused = 0
        for record in records:
            try:
                each(record, done)
            except MemoryError:
                raise  # another time there may be enough
            except Exception as error:
                bad.add(name, record[0], record[1], explained(error), record[3])
                refused += 1
        count[0] += len(records)
        count[1] += len(done)
        count[2] += refused
        return done

    return run


def explained(error: Exception) -> BadRecord:
    """Return what is wrong with a row, from whatever was raised."""
    if isinstance(error, BadRecord):
        return error
    if isinstance(error, DeepSeekError):
        return BadRecord(error.problem, "" if error.found is None else str(error.found)[:400])
    return BadRecord(type(error).__name__, str(error)[:400])


def _each_of(step: Step) -> Callable[[Record, list[Record]], None]:
    """Return the function that appends to a list what becomes of a record."""
    if isinstance(step, Map):
        return _map(step.function)
    if isinstance(step, Filter):
        return _filter(step.function)
    if isinstance(step, FlatMap):
        return _flat_map(step.function)
    if isinstance(step, Split):
        return _split(step)
    raise TypeError(type(step).__name__)


def _map(function: Callable[[Any], Any]) -> Callable[[Record, list[Record]], None]:
    def each(record: Record, done: list[Record]) -> None:
        file, place, split, row = record
        done.append((file, place, split, _checked(function(row))))

    return each


def _filter(function: Callable[[Any], Any]) -> Callable[[Record, list[Record]], None]:
    def each(record: Record, done: list[Record]) -> None:
        if function(record[3]):
            done.append(record)

    return each


def _flat_map(function: Callable[[Any], Iterable[Any]]) -> Callable[[Record, list[Record]], None]:
    def each(record: Record, done: list[Record]) -> None:
        file, place, split, row = record
        found = function(row)
        if isinstance(found, (dict, str, bytes)):
            raise BadRecord("flat_map needs a list of dicts", f"the function returned {type(found).__name__}")
        # all or none of a row's rows, so a bad row is in one place alone
        done.extend([(file, place, split, _checked(one)) for one in found])

    return each


def _split(step: Split) -> Callable[[Record, list[Record]], None]:
    names = [name for name, _ in step.shares]
    bounds = [share * 2**64 for share in accumulate(share for _, share in step.shares)][:-1]
    key = key_getter(step.by)

    def each(record: Record, done: list[Record]) -> None:
        file, place, _, row = record
        where = int.from_bytes(hash_of(key(row), step.seed)[:8], "little")
        done.append((file, place, names[bisect_right(bounds, where)], row))

    return each


def _checked(row: Any) -> dict[str, Any]:
    if type(row) is not dict:
        raise BadRecord("a row has to be a dict", f"the function returned {type(row).__name__}")
    return row
