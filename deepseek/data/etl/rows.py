"""What travels through a plan: rows, where each came from, and rows as bytes between two stages.

A row is a dict. Beside it a record carries its origin (file and place in it) for messages, and its split. Rows that
wait on disk are pickled; they are opened by a reader that knows arrays, dates and decimals and calls nothing else, so a
damaged file can't run code. Not here: file formats (`sources`, `sinks`).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek.data.record_forms import BadRecord

Row = dict[str, Any]
Record = tuple[int, int, str, Row]
"""(number of the file, place in it, split or "", row)."""

_PLAIN = (str, int, float, bool, bytes, type(None))
_ALLOWED = {
    ("datetime", "datetime"),
    ("datetime", "date"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
}


def make_array(dtype: str, shape: tuple[int, ...], data: bytes) -> NDArray[Any]:
    """Return the array of `data`, with memory of its own."""
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()


class _Packer(pickle.Pickler):
    """Pickles plain values and arrays; anything else is refused when it is written, not when it is read."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
            return make_array, (value.dtype.str, value.shape, array.tobytes())
        kind = value if isinstance(value, type) else type(value)
        if (kind.__module__, kind.__qualname__) in _ALLOWED or value is make_array:
            return NotImplemented
        raise BadRecord("a value that can't be kept", f"{type(value).__name__}; plain values and arrays can")


class _Unpacker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (make_array.__module__, "make_array"):
            return make_array
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def pack(record: Record) -> bytes:
    """Return a record as bytes. Raises BadRecord for a row with other values than plain ones, dates and arrays."""
    row = record[3]
    if all(type(value) in _PLAIN for value in row.values()):
        return pickle.dumps(record, 5)
    target = io.BytesIO()
    try:
        _Packer(target, 5).dump(record)
    except (RecursionError, pickle.PicklingError, AttributeError) as error:
        raise BadRecord("a value that can't be kept", str(error)[:200] or "nested too deeply") from None
    return target.getvalue()


def unpack(data: bytes) -> Record:
    """Return the record of `pack`. Raises ValueError for other bytes."""
    try:
        file, place, split, row = _Unpacker(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"no record: {error}") from None
    return file, place, split, row


def key_getter(names: Sequence[str]) -> Callable[[Row], bytes]:
    """Return the function from a row to the bytes of its value under `names`: of the whole row if there are none.

    Equal values of the same type give equal bytes, in whatever order their keys stand. It raises BadRecord for a row
    that lacks a name.
    """
    if not names:
        return _canonical

    def key(row: Row) -> bytes:
        for name in names:
            if name not in row:
                raise BadRecord(f"no column '{name}'", f"columns: {', '.join(map(str, row))}"[:200])
        only = row[names[0]]
        if len(names) == 1 and type(only) is str:
            return b"s" + only.encode("utf-8", "surrogatepass")
        return _canonical(only if len(names) == 1 else [row[name] for name in names])

    return key


def hash_of(data: bytes, seed: int = 0) -> bytes:
    """Return 16 bytes that depend on `data` and `seed` (BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little") if seed else b"").digest()


def _canonical(value: Any) -> bytes:
    try:
        return b"j" + json.dumps(value, sort_keys=True, default=_tagged).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord("a value that has no key", str(error)[:200]) from None


def _tagged(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return {"array": [value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if (type(value).__module__, type(value).__qualname__) in _ALLOWED:
        return {type(value).__qualname__: str(value)}
    raise TypeError(f"{type(value).__name__} has no order of bytes")
