"""What a connection answers where there is no request yet: a head that is too large, too slow, or no HTTP.

Not here: refusals of requests (see `gateway`, `reply`).
"""

from __future__ import annotations

from http import HTTPStatus

from deepseek.errors import RequestError
from deepseek.serve.rest.wire import dump, error_body


def refusal(status: HTTPStatus, head_limit: int, head_seconds: float) -> bytes:
    """Return the whole answer; the connection ends with it. `head_limit` in bytes."""
    error = _error(status, head_limit, head_seconds)
    body = dump({"error": error_body(error, "")["error"]})
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        head += "retry-after: 1\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def _error(status: HTTPStatus, head_limit: int, head_seconds: float) -> RequestError:
    if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        problem, wanted = "the request line and headers are too large", f"at most {head_limit} bytes"
        return RequestError(problem, status=status, wanted=wanted)
    if status is HTTPStatus.REQUEST_TIMEOUT:
        problem = f"the headers did not arrive within {head_seconds:g} s"
        return RequestError(problem, status=status, fix="send the request again")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        return RequestError("the server has too many connections", status=status, fix="try again in a moment")
    return RequestError("this is no HTTP/1.1 request that can be read", status=HTTPStatus.BAD_REQUEST)
