"""One line of JSON to one object, whatever its keys, and what can be wrong with it (RFC 8259).

Not here: the forms of training records (`deepseek.data.record_forms`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from deepseek.data import record_forms
from deepseek.data.record_forms import BadRecord

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on one line of UTF-8. Raises BadRecord.

    Refused besides broken JSON: NUL bytes, a key that comes twice, NaN and Infinity (which are not JSON), and text
    with half of a surrogate pair, which no UTF-8 file could hold again.
    """
    record = record_forms.parse_object(line, _DECODER)
    if _SURROGATE.search(line):
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("lone surrogate", "half of a surrogate pair in a text") from None
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRecord("repeated key", repr(next(name for name in names if names.count(name) > 1))[:60])
    return made


def _no_constant(name: str) -> NoReturn:
    raise BadRecord("not valid JSON", f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
