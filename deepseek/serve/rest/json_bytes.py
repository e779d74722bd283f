"""Values to compact JSON: by orjson where that is installed, else by the standard library.

Not here: reading JSON (see `body`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np


def _writer() -> Callable[[Any], bytes]:
    try:
        orjson: Any = importlib.import_module("orjson")
    except ImportError:
        return _plainly
    dumps: Callable[..., bytes] = orjson.dumps
    option: int = orjson.OPT_SERIALIZE_NUMPY

    def write(value: Any) -> bytes:
        return dumps(value, default=_default, option=option)

    return write


def _plainly(value: Any) -> bytes:
    return json.dumps(value, default=_default, separators=(",", ":"), allow_nan=False).encode("ascii")


def _default(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # the shortest digits that give the same float32, not those of its double
            return [float(str(item)) for item in value.ravel()] if value.ndim == 1 else [_default(row) for row in value]
        return value.tolist()
    if isinstance(value, np.generic):
        return float(str(value)) if value.dtype == np.float32 else value.item()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


dump_arrays = _writer()
"""Return a value that may hold numpy arrays as JSON in UTF-8. What is not finite becomes null, or raises ValueError."""


def dump_numbers(value: Any) -> bytes | None:
    """Return what `dump_arrays` does, None where it may hold a null: for values that should have none.

    So the numbers of an answer are looked through only where there is a reason to.
    """
    try:
        data = dump_arrays(value)
    except ValueError:
        return None
    return None if b"null" in data else data
