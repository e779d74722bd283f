"""What every form asks of the values in an instance, and what it says where they can't be used: RequestError."""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable, Mapping
from typing import Any

from deepseek.errors import ConfigError, DeepSeekError, RequestError, did_you_mean

TOO_LARGE, WRONG_KIND = 413, 415


def type_name(value: object) -> str:
    """Return what a JSON value is called."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", bytes: "bytes"}
    return "null" if value is None else names.get(type(value), "a number")


def text_of(value: object, field: str, limit: int) -> str:
    """Return a text of 1 to `limit` characters, all of which can be UTF-8. Raises RequestError."""
    if not isinstance(value, str):
        raise RequestError(f"'{field}' is text", field=field, found=type_name(value), wanted="text")
    if len(value) > limit:
        found, wanted = f"{len(value)} characters", f"at most {limit}"
        raise RequestError(f"'{field}' is too long", field=field, status=TOO_LARGE, found=found, wanted=wanted)
    if not value:
        raise RequestError(f"'{field}' is empty", field=field, wanted="at least one character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at character {error.start + 1}"
        raise RequestError(f"'{field}' is no valid Unicode", field=field, found=found) from None
    return value


def bytes_of(value: object, field: str, limit: int, example: str) -> bytes:
    """Return the bytes of a raw body or of {"b64": text}, at most `limit`. Raises RequestError before decoding."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _bounded(bytes(value), field, limit)
    if not isinstance(value, Mapping) or "b64" not in value:
        found = type_name(value) if not isinstance(value, Mapping) else f"keys {', '.join(map(shown, value)) or 'none'}"
        raise RequestError(f"'{field}' is no {example}", field=field, found=found[:200], wanted='{"b64": "..."}')
    known_keys(value, ("b64",), field)
    text = value["b64"]
    if not isinstance(text, str):
        raise RequestError("'b64' is text in base64", field="b64", found=type_name(text), wanted="text")
    if len(text) // 4 * 3 > limit + 2:
        raise _too_many_bytes("b64", len(text) // 4 * 3, limit)
    try:
        return _bounded(binascii.a2b_base64(text.encode("ascii"), strict_mode=True), "b64", limit)
    except (ValueError, UnicodeEncodeError) as error:
        fix = "leave out what stands before the comma" if text.startswith("data:") else None
        found = str(error) if isinstance(error, binascii.Error) else "characters that are no base64"
        wanted = "RFC 4648: A-Z a-z 0-9 + / and padding, no line ends"
        raise RequestError("'b64' is no base64", field="b64", found=found, wanted=wanted, fix=fix) from None


def _bounded(data: bytes, field: str, limit: int) -> bytes:
    if len(data) > limit:
        raise _too_many_bytes(field, len(data), limit)
    if not data:
        raise RequestError(f"'{field}' is empty", field=field, wanted="at least one byte")
    return data


def _too_many_bytes(field: str, found: int, limit: int) -> RequestError:
    return RequestError(
        f"'{field}' is too large", field=field, status=TOO_LARGE, found=f"{found} bytes", wanted=f"at most {limit}"
    )


def known_keys(value: Mapping[Any, Any], known: Iterable[str], field: str) -> None:
    """Raise RequestError for a key that is not known, with the nearest right one."""
    names = list(known)
    for key in value:
        if key not in names:
            fix = did_you_mean(shown(key), names) if names else "leave it out"
            raise RequestError(f"'{field}' has an unknown key", field=shown(key), found=shown(key), fix=fix)


def shown(key: object) -> str:
    """Return a key or a word of a request as a message may have it: short, and valid Unicode."""
    return str(key)[:80].encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(key, str) else type_name(key)


def number_of(value: object, field: str) -> float:
    """Return a finite number, no bool. Raises RequestError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"'{field}' is a number", field=field, found=type_name(value), wanted="a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RequestError(
            f"'{field}' is out of range", field=field, found="no finite number", wanted="a finite number"
        )
    return number


def whole_of(value: object, field: str, lowest: int, highest: int) -> int:
    """Return a whole number within its bounds, no bool. Raises RequestError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"'{field}' is a whole number", field=field, found=type_name(value), wanted="a whole number")
    if not lowest <= value <= highest:
        found = str(value) if abs(value) < 10**15 else "a number with many digits"
        raise RequestError(f"'{field}' is out of range", field=field, found=found, wanted=f"{lowest} to {highest}")
    return value


def refused(error: DeepSeekError, field: str, problem: str | None = None) -> RequestError:
    """Return what to tell a client of an error below: what was found and wanted. What another library said, and what
    speaks of settings and paths, stays here.
    """
    inner: DeepSeekError = error
    while isinstance(inner.__cause__, DeepSeekError):
        inner = inner.__cause__
    if inner.__cause__ is not None or isinstance(inner, ConfigError):
        return RequestError(problem or f"'{field}' can't be used by the model's pipeline", field=field)
    told = problem or f"'{field}' can't be used: {inner.problem}"
    return RequestError(told, field=field, found=inner.found, wanted=inner.wanted)


def json_number(value: float) -> float | None:
    """Return the number, None (JSON's null) where it is NaN or infinite."""
    return value if math.isfinite(value) else None


NUMBER: dict[str, Any] = {"type": ["number", "null"]}
"""The schema of `json_number`."""


def object_schema(properties: dict[str, Any], required: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these keys and no others; all are required unless said."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }
