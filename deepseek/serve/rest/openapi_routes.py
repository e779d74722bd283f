"""The parts that routes of the OpenAPI document are made of: bodies, answers, refusals, path items.

Not here: which routes there are (see `openapi`, `openapi_models`), and schemas (see `openapi_schemas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deepseek.serve.rest.openapi_schemas import ref

JSON = "application/json"
_REFUSALS = {
    400: "A field or the body is wrong; the message names it.",
    401: "The API key is missing or wrong.",
    403: "The Host, the Origin or the action is not allowed.",
    404: "There is no such path or model.",
    408: "The body did not arrive in time.",
    413: "The body or what it holds is too large.",
    415: "The content type is not one that is read here.",
    429: "Too many requests are waiting; Retry-After says when to come again.",
    499: "The client no longer wants the answer.",
    500: "A fault of the server; its log has the details under the request's id.",
    501: "The server lacks what this needs.",
    503: "Not ready, or stopping; Retry-After says when to come again.",
    504: "It took too long.",
}
EVENTS = {"description": "Server-sent events (WHATWG HTML, section 9.2); the data of each is an object in JSON."}
_PROBED = (401, 403, 404, 429, 500, 503)
_ASKED = tuple(_REFUSALS)


def in_json(schema: str, *, stream: bool = False) -> dict[str, Any]:
    """Return an answer of this schema, in a stream too."""
    content: dict[str, Any] = {JSON: {"schema": ref(schema)}}
    if stream:
        content["text/event-stream"] = {"schema": EVENTS}
    return {"description": "The answer.", "content": content}


def body(schema: str, *, required: bool = True) -> dict[str, Any]:
    """Return a request body of this schema."""
    return {"required": required, "content": {JSON: {"schema": ref(schema)}}}


def refusal(status: int, schema: str) -> dict[str, Any]:
    """Return what a refusal of this status is."""
    return {"description": _REFUSALS[status], "content": {JSON: {"schema": ref(schema)}}}


def get(
    name: str,
    summary: str,
    answer: Mapping[str, Any],
    *,
    parameters: Iterable[Mapping[str, Any]] = (),
    also: Mapping[int, Mapping[str, Any]] | None = None,
    error: str = "Error",
    open_to_all: bool = False,
) -> dict[str, Any]:
    """Return the path item of a route that is read."""
    refusals = {str(status): refusal(status, error) for status in _PROBED}
    others = {str(status): dict(reply) for status, reply in (also or {}).items()}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": dict(answer), **refusals, **others},
    }
    if parameters:
        operation["parameters"] = [dict(parameter) for parameter in parameters]
    if open_to_all:
        operation["security"] = []
    return {"get": operation}


def post(
    name: str,
    summary: str,
    asked: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    parameters: Iterable[Mapping[str, Any]] = (),
    error: str = "Error",
) -> dict[str, Any]:
    """Return the path item of a route that is asked."""
    refusals = {str(status): refusal(status, error) for status in _ASKED}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "requestBody": dict(asked),
        "responses": {"200": dict(answer), **refusals},
    }
    if parameters:
        operation["parameters"] = [dict(parameter) for parameter in parameters]
    return {"post": operation}


def of_versions(
    names: list[str], version: Mapping[str, Any], path: str = "/v2/models/{name}"
) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return a model's paths, without and with a version: what its operations' ids end with, path, parameters."""
    named: list[Mapping[str, Any]] = [name_of(names)] if "{name}" in path else []
    return [("", path, named), ("_version", f"{path}/versions/{{version}}", [*named, version])]


def name_of(names: list[str]) -> dict[str, Any]:
    """Return the parameter that names one of the models."""
    schema = {"type": "string", "enum": names} if names else {"type": "string"}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def version_of(known: list[str]) -> dict[str, Any]:
    """Return the parameter that names a version."""
    schema = {"type": "string", "enum": known} if known else {"type": "string"}
    return {"name": "version", "in": "path", "required": True, "schema": schema}
