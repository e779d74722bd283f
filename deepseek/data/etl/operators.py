"""The steps that look at one row: what they do to a list of records, and what they count.

An error of a function is a bad row, named by step and row. Not here: steps that compare rows (`exchange`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from deepseek.data.etl.bad_rows import BadRows
from deepseek.data.etl.rows import Record, Row, hash_of, key_getter
from deepseek.data.etl.steps import Filter, FlatMap, Map, Split, Step
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DeepSeekError

Operator = Callable[[list[Record]], list[Record]]
Refuse = Callable[[Record, Exception], None]
Counts = dict[int, list[int]]
"""For each step's number: rows in, rows out, bad ones."""


def operators(steps: Sequence[tuple[int, Step]], bad: BadRows, counts: Counts) -> list[Operator]:
    """Return the functions of the steps, given with their numbers; bad rows go to `bad`, counts to `counts`."""
    return [_operator(number, step, bad, counts.setdefault(number, [0, 0, 0])) for number, step in steps]


def _operator(number: int, step: Step, bad: BadRows, count: list[int]) -> Operator:
    name = f"{number}. {step.words()}"

    def refuse(record: Record, error: Exception) -> None:
        if isinstance(error, MemoryError):
            raise error  # another time there may be enough
        bad.add(name, record[0], record[1], explained(error), record[3])
        count[2] += 1

    change = _change(step, refuse)

    def run(records: list[Record]) -> list[Record]:
        done = change(records)
        count[0] += len(records)
        count[1] += len(done)
        return done

    return run


def explained(error: Exception) -> BadRecord:
    """Return what is wrong with a row, from whatever was raised."""
    if isinstance(error, BadRecord):
        return error
    if isinstance(error, DeepSeekError):
        return BadRecord(error.problem, "" if error.found is None else str(error.found)[:400])
    return BadRecord(type(error).__name__, str(error)[:400])


def _change(step: Step, refuse: Refuse) -> Operator:
    """Return the function from records to what becomes of them; those that raise are given to `refuse`."""
    if isinstance(step, Map):
        return _map(step.function, refuse)
    if isinstance(step, Filter):
        return _filter(step.function, refuse)
    if isinstance(step, FlatMap):
        return _flat_map(step.function, refuse)
    if isinstance(step, Split):
        return _split(step, refuse)
    raise TypeError(type(step).__name__)


def _map(function: Callable[[Any], Any], refuse: Refuse) -> Operator:
    def change(records: list[Record]) -> list[Record]:
        done: list[Record] = []
        for record in records:
            try:
                row = function(record[3])
                if type(row) is not dict:
                    raise _no_row(row)
            except Exception as error:
                refuse(record, error)
            else:
                done.append((record[0], record[1], record[2], row))
        return done

    return change


def _filter(function: Callable[[Any], Any], refuse: Refuse) -> Operator:
    def change(records: list[Record]) -> list[Record]:
        done: list[Record] = []
        for record in records:
            try:
                if function(record[3]):
                    done.append(record)
            except Exception as error:
                refuse(record, error)
        return done

    return change


def _flat_map(function: Callable[[Any], Iterable[Any]], refuse: Refuse) -> Operator:
    def rows_of(row: Row) -> list[Row]:
        found = function(row)
        if isinstance(found, (dict, str, bytes)):
            raise BadRecord("flat_map needs a list of dicts", f"the function returned {type(found).__name__}")
        rows = list(found)
        for one in rows:
            if type(one) is not dict:
                raise _no_row(one)
        return rows

    def change(records: list[Record]) -> list[Record]:
        done: list[Record] = []
        for record in records:
            try:
                rows = rows_of(record[3])  # all or none of them, so a bad row is in one place alone
            except Exception as error:
                refuse(record, error)
            else:
                done.extend([(record[0], record[1], record[2], row) for row in rows])
        return done

    return change


def _split(step: Split, refuse: Refuse) -> Operator:
    names = [name for name, _ in step.shares]
    bounds = [share * 2**64 for share in accumulate(share for _, share in step.shares)][:-1]
    key = key_getter(step.by)

    def change(records: list[Record]) -> list[Record]:
        done: list[Record] = []
        for record in records:
            try:
                where = int.from_bytes(hash_of(key(record[3]), step.seed)[:8], "little")
            except BadRecord as error:
                refuse(record, error)
            else:
                done.append((record[0], record[1], names[bisect_right(bounds, where)], record[3]))
        return done

    return change


def _no_row(row: Any) -> BadRecord:
    return BadRecord("a row has to be a dict", f"the function returned {type(row).__name__}")
