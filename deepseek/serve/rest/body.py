"""Request bodies: read up to a limit, as they are or parsed as strict JSON. Never a 500 for what a client sends.

JSON is read by orjson where that is installed and the result is certain to be what the strict parser would give;
everything in doubt goes to the strict parser. Not here: what the fields mean (see `schema`).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from deepseek.errors import RequestError
from deepseek.serve.rest.begun import Begun

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope

BODY_LIMIT = 1 << 20
"""Bytes of the longest text request that is read."""
TENSOR_BODY_LIMIT = 16 << 20
"""Bytes of the longest request with tensors, images or sound."""
WHOLE_BODY = "deepseek.whole_body"
"""What a scope may have: the body as bytes, where it is here already and no header makes it special."""
DEPTH_LIMIT = 16
"""Levels of lists and objects inside each other."""
BODY_SECONDS = 30.0
"""The longest a client may take to send its body."""
_DRAINED = 8 << 20
"""Bytes beyond the limit that are still read, so that the client hears why it is refused."""
_LARGE = 256 << 10
"""Bytes from which on JSON is parsed beside the event loop."""

# A string, or an unfinished one up to the end: possessive, so that no input makes it slow.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _fast_loads() -> Callable[[bytes], Any] | None:
    try:
        loads: Callable[[bytes], Any] = importlib.import_module("orjson").loads
    except ImportError:
        return None
    return loads


_LOADS = _fast_loads()


async def read_json(request: Request, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """Return the body as an object.

    Raises RequestError: 415 for another content type, 413 beyond `limit` bytes (whatever Content-Length says),
    408 for a client too slow, 400 for what is no UTF-8, no JSON, no object, too deep, or has a key twice.
    """
    require_json(request.headers.get("content-type", ""))
    return await load_json(await read_body(request.scope, request.receive, limit))


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the body as it came. Raises RequestError: 413 beyond `limit` bytes, 415 compressed, 408 too slow."""
    whole: bytes | None = scope.get(WHOLE_BODY)
    if whole is not None:
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    _check_headers(scope["headers"], limit)
    reading = Begun(_read(receive, limit))  # mostly the body is there already
    if reading.done:
        return reading.result
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await reading
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {BODY_SECONDS:g} s", status=408, fix="send it again"
        ) from None


async def load_json(body: bytes, *, finite: bool = False) -> dict[str, Any]:
    """Return `body` parsed as by `parse_json`; a large one is parsed beside the event loop."""
    if len(body) > _LARGE:
        return await asyncio.to_thread(parse_json, body, finite=finite)
    return parse_json(body, finite=finite)


def parse_json(body: bytes, *, finite: bool = False) -> dict[str, Any]:
    """Return `body` parsed; with `finite`, NaN and Infinity are refused here instead of by the field they stand in.

    Raises RequestError with status 400.
    """
    if _too_deep(body):
        raise RequestError(f"the body is nested more than {DEPTH_LIMIT} levels deep or has brackets that don't match")
    value = _quickly(body)
    if value is None:
        value = _strictly(body, finite)
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object", wanted='{"prompt": "...", ...}')
    return value


def require_json(content_type: str) -> None:
    """Raise RequestError (415) unless a Content-Type says JSON in UTF-8."""
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise RequestError(
            "the content type is not JSON",
            status=415,
            found=_short(content_type or "none"),
            wanted="Content-Type: application/json",
        )


def _quickly(body: bytes) -> dict[str, Any] | None:
    """Return what orjson reads, or None where the strict parser must decide.

    orjson makes floats of whole numbers beyond 64 bits and keeps the last of equal keys. Every key has its own colon,
    so where there are as many colons as keys in the result no key was lost (and no text holds a colon). A result with
    fewer keys proves nothing.
    """
    if _LOADS is None or _LONG_NUMBER in body.translate(_DIGITS):
        return None
    try:
        value = _LOADS(body)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return value if _keys_in(value) == body.count(b":") else None


def _keys_in(value: dict[str, Any]) -> int:
    """Return how many keys there are in objects and lists of objects; what stands deeper in lists is not counted."""
    count = len(value)
    for item in value.values():
        if type(item) is dict:
            count += _keys_in(item)
        elif type(item) is list and item and type(item[0]) is dict:
            count += sum(_keys_in(inner) for inner in item if type(inner) is dict)
    return count


def _strictly(body: bytes, finite: bool) -> Any:
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant if finite else None
        )
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8", found=f"byte {body[error.start]:#04x} at {error.start}") from None
    except json.JSONDecodeError as error:
        raise RequestError("the body is not JSON", found=f"{error.msg} at character {error.pos}") from None
    except RequestError:
        raise
    except (ValueError, RecursionError):  # a number of more than 4300 digits
        raise RequestError("the body is not JSON that can be read", wanted="numbers of usual length") from None
    if isinstance(value, dict) and _SURROGATE.search(body):
        _refuse_lone_surrogates(value)
    return value


def _check_headers(headers: Iterable[tuple[bytes, bytes]], limit: int) -> None:
    expects = False
    declared = 0
    for name, value in headers:
        if name == b"content-length":
            declared = int(value[:20]) if value.isdigit() else 0
        elif name == b"expect":
            expects = True
        elif name == b"content-encoding" and value != b"identity":
            raise RequestError("compressed bodies are not read", status=415, fix="send the body as it is")
    if declared > limit and (expects or declared > limit + _DRAINED):
        raise _too_large(limit)


async def _read(receive: Receive, limit: int) -> bytes:
    """Return the body. One that is a little too long is read to its end, so that the client hears why it is refused."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size <= limit + _DRAINED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client went away before its body was here")
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        parts.append(part)
        if size > limit:
            parts.clear()
    if size > limit:
        raise _too_large(limit)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> RequestError:
    return RequestError("the body is too large", status=413, wanted=f"at most {limit} bytes")


def _too_deep(body: bytes) -> bool:
    """Return whether brackets remain after removing the innermost pairs DEPTH_LIMIT times (a few ms for 1 MiB)."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_LIMIT:
        return False  # what does not match is left to the parser
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(DEPTH_LIMIT):
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return bool(brackets)


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"the body has {name}, which JSON does not know", wanted="finite numbers")


def _refuse_lone_surrogates(value: dict[str, Any]) -> None:
    for key, item in value.items():
        try:
            json.dumps([key, item], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError(
                "a text has half of a surrogate pair", field=_field(key), wanted="whole characters"
            ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise RequestError(f"the key {_short(key)} appears twice", field=_field(key), fix="keep one of them")
        value[key] = item
    return value


def _field(key: str) -> str:
    return key.encode("ascii", "backslashreplace").decode()[:64]


def _short(value: str) -> str:
    return ascii(value) if len(value) <= 64 else ascii(value[:61]) + "..."
