"""Request bodies: read up to a limit, parsed as strict JSON. Never a 500 for what a client sends.

Not here: what the fields mean (see `schema`).
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_LIMIT = 1 << 20
"""Bytes of the longest body that is read."""
DEPTH_LIMIT = 16
"""Levels of lists and objects inside each other."""
BODY_SECONDS = 30.0
"""The longest a client may take to send its body."""
_DRAINED = 8

# A string, or an unfinished one up to the end: possessive, so that no input makes it slow.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


async def read_json(request: Request, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """Return the body as an object.

    Raises RequestError: 415 for another content type, 413 beyond `limit` bytes (whatever Content-Length says),
    408 for a client too slow, 400 for what is no UTF-8, no JSON, no object, too deep, or has a key twice.
    """
    from starlette.requests import ClientDisconnect

    _check_headers(request, limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(request, limit)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {BODY_SECONDS:g} s", status=408, fix="send it again"
        ) from None
    except ClientDisconnect:
        raise RequestError("the client went away before its body was here") from None
    return parse_json(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """Return `body` parsed. Raises RequestError with status 400."""
    if _too_deep(body):
        raise RequestError(f"the body is nested more than {DEPTH_LIMIT} levels deep or has brackets that don't match")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8", found=f"byte {body[error.start]:#04x} at {error.start}") from None
    except json.JSONDecodeError as error:
        raise RequestError("the body is not JSON", found=f"{error.msg} at character {error.pos}") from None
    except RequestError:
        raise
    except (ValueError, RecursionError):  # a number of more than 4300 digits
        raise RequestError("the body is not JSON that can be read", wanted="numbers of usual length") from None
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object", wanted='{"prompt": "...", ...}')
    if _SURROGATE.search(body):
        _refuse_lone_surrogates(value)
    return value


def _check_headers(request: Request, limit: int) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise RequestError(
            "the content type is not JSON",
            status=415,
            found=_short(request.headers.get("content-type", "none")),
            wanted="Content-Type: application/json",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed bodies are not read", status=415, fix="send the body as it is")
    length = request.headers.get("content-length", "0")
    declared = int(length[:20]) if length.isdecimal() else 0
    if declared > limit and ("expect" in request.headers or declared > _DRAINED * limit):
        raise _too_large(limit)


async def _read(request: Request, limit: int) -> bytes:
    """Return the body. One that is a little too long is read to its end, so that the client hears why it is refused."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        parts.append(part)
        if size > limit:
            parts.clear()
        if size > _DRAINED * limit:
            break
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> RequestError:
    return RequestError("the body is too large", status=413, wanted=f"at most {limit} bytes")


def _too_deep(body: bytes) -> bool:
    """Return whether brackets remain after removing the innermost pairs DEPTH_LIMIT times (a few ms for 1 MiB)."""
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(DEPTH_LIMIT):
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return bool(brackets)


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
