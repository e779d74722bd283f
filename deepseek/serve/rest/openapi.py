"""The OpenAPI 3.1 document of a server: every route, its fields and bounds, its answers and its refusals.

Requests come from the forms that check them, predictions from each served model's own form, so that the document can't
say anything else than what happens. Source: OpenAPI Specification 3.1.1. Not here: the schemas (see `openapi_schemas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deepseek.serve.rest.openapi_schemas import components, listed, record, ref
from deepseek.serve.rest.predict import MAX_INSTANCES, RAW_TYPES, Forms

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted

_JSON = "application/json"
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
_EVENTS = {"description": "Server-sent events (WHATWG HTML, section 9.2); the data of each is an object in JSON."}
_PROBED = (401, 403, 404, 429, 500, 503)
_ASKED = tuple(_REFUSALS)


def document(hosted: Iterable[Hosted], versions: Iterable[str], forms: Forms) -> dict[str, Any]:
    """Return the document for the models that are served now, and their versions."""
    from deepseek import __version__

    models = list(hosted)
    named = [model.name for model in models]
    version = _version(sorted(versions))
    texts = [model.name for model in models if model.kind == "text"]
    tensors = [model for model in models if model.kind == "tensor"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "deepseek", "version": __version__, "description": "Models served over HTTP."},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": {
            **_probes(),
            **_openai(named),
            **_predict(tensors, version, forms),
            **_inference(named, version),
            **_generate(texts, version),
            **_repository(),
        },
        "components": {
            "schemas": components(texts, lone=len(models) == 1),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _probes() -> dict[str, Any]:
    page = {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}
    told = {"description": "Prometheus' text form.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    described = {"description": "This document.", "content": {_JSON: {"schema": {"type": "object"}}}}
    return {
        "/": _get("page", "The page to try the models", page, open_to_all=True),
        "/health": _get("health", "Whether the process lives", _json("Alive"), open_to_all=True),
        "/ready": _get("ready", "Whether the models are ready", _json("Ready"), also={503: _json("Ready")}),
        "/metrics": _get("metrics", "What Prometheus scrapes", told, also={501: _refusal(501, "Error")}),
        "/openapi.json": _get("openapi", "This description", described),
    }


def _openai(names: list[str]) -> dict[str, Any]:
    return {
        "/v1/models": _get("models", "The models", _json("ModelList")),
        "/v1/models/{name}": _get("model", "One model", _json("ModelCard"), parameters=[_name(names)]),
        "/v1/completions": _post(
            "completions", "Continue a text", _body("CompletionForm"), _json("Completion", stream=True)
        ),
        "/v1/chat/completions": _post(
            "chat", "Answer in a conversation", _body("ChatForm"), _json("ChatCompletion", stream=True)
        ),
        "/v1/embeddings": _post("embeddings", "Vectors of texts", _body("EmbeddingForm"), _json("Embeddings")),
    }


def _predict(models: Iterable[Hosted], version: Mapping[str, Any], forms: Forms) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for hosted in models:
        form = forms.of(hosted)
        instances = listed(form.request_schema, minItems=1, maxItems=MAX_INSTANCES)
        content: dict[str, Any] = {_JSON: {"schema": record({"instances": instances})}}
        content |= {kind: {"schema": {}} for kind in sorted(RAW_TYPES.get(form.takes, ()))}
        answer = record(
            {
                "predictions": listed(form.answer_schema),
                "model": {"const": hosted.name},
                "version": {"type": "string"},
            }
        )
        done = {"description": "One prediction for each instance.", "content": {_JSON: {"schema": answer}}}
        for suffix, parameters in (("", []), ("/versions/{version}", [version])):
            paths[f"/v1/models/{hosted.name}{suffix}:predict"] = _post(
                f"predict_{hosted.name}{'_version' if suffix else ''}",
                f"Predict with {hosted.name}: {form.takes} to {form.gives}",
                {"required": True, "content": content},
                done,
                parameters=parameters,
            )
    return paths


def _inference(names: list[str], version: Mapping[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v2": _get("v2_server", "What server this is", _json("ServerMetadata"), error="InferenceError"),
        "/v2/health/live": _get("v2_live", "Whether the process lives", _json("ServerLive"), open_to_all=True),
        "/v2/health/ready": _get(
            "v2_ready", "Whether the models are ready", _json("ServerReady"), also={503: _json("ServerReady")},
            error="InferenceError",
        ),
    }  # fmt: skip
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of the JSON part; raw tensors follow it. 0: the whole body is one raw tensor.",
        "schema": {"type": "integer", "minimum": 0},
    }
    raw: dict[str, Any] = {"schema": {}}
    for suffix, path, parameters in _versions(names, version):
        body = {"required": True, "content": {_JSON: {"schema": ref("InferForm")}, "application/octet-stream": raw}}
        answer = _json("InferAnswer")
        answer["content"]["application/octet-stream"] = raw
        paths[path] = _get(
            f"v2_model{suffix}", "A model's inputs and outputs", _json("ModelMetadata"),
            parameters=parameters, error="InferenceError",
        )  # fmt: skip
        paths[f"{path}/ready"] = _get(
            f"v2_model_ready{suffix}", "Whether a model is ready", _json("ModelReady"),
            parameters=parameters, error="InferenceError",
        )  # fmt: skip
        paths[f"{path}/infer"] = _post(
            f"v2_infer{suffix}", "Tensors to tensors", body, answer,
            parameters=[*parameters, length], error="InferenceError",
        )  # fmt: skip
    return paths


def _generate(names: list[str], version: Mapping[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    stream = {"description": "Pieces of text.", "content": {"text/event-stream": {"schema": _EVENTS}}}
    for suffix, path, parameters in _versions(names, version) if names else ():
        for verb, answer in (("generate", _json("GenerateAnswer")), ("generate_stream", stream)):
            paths[f"{path}/{verb}"] = _post(
                f"v2_{verb}{suffix}", "Continue a text", _body("GenerateForm"), answer,
                parameters=parameters, error="InferenceError",
            )  # fmt: skip
    return paths


def _repository() -> dict[str, Any]:
    done = {"description": "Done.", "content": {_JSON: {"schema": {"type": "object"}}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths = {
        "/v2/repository/index": _post(
            "v2_index", "Models and versions with their states", _body("IndexForm", required=False),
            _json("RepositoryIndex"), error="InferenceError",
        )
    }  # fmt: skip
    for verb in ("load", "unload"):
        paths[f"/v2/repository/models/{{name}}/{verb}"] = _post(
            f"v2_{verb}", f"{verb.capitalize()} a model", _body("RepositoryForm", required=False), done,
            parameters=[name], error="InferenceError",
        )  # fmt: skip
    return paths


def _versions(names: list[str], version: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    return [
        ("", "/v2/models/{name}", [_name(names)]),
        ("_version", "/v2/models/{name}/versions/{version}", [_name(names), version]),
    ]


def _name(names: list[str]) -> dict[str, Any]:
    schema = {"type": "string", "enum": names} if names else {"type": "string"}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def _version(known: list[str]) -> dict[str, Any]:
    schema = {"type": "string", "enum": known} if known else {"type": "string"}
    return {"name": "version", "in": "path", "required": True, "schema": schema}


def _json(schema: str, *, stream: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": ref(schema)}}
    if stream:
        content["text/event-stream"] = {"schema": _EVENTS}
    return {"description": "The answer.", "content": content}


def _body(schema: str, *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {_JSON: {"schema": ref(schema)}}}


def _refusal(status: int, schema: str) -> dict[str, Any]:
    return {"description": _REFUSALS[status], "content": {_JSON: {"schema": ref(schema)}}}


def _get(
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
    refusals = {str(status): _refusal(status, error) for status in _PROBED}
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


def _post(
    name: str,
    summary: str,
    body: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    parameters: Iterable[Mapping[str, Any]] = (),
    error: str = "Error",
) -> dict[str, Any]:
    """Return the path item of a route that is asked."""
    refusals = {str(status): _refusal(status, error) for status in _ASKED}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "requestBody": dict(body),
        "responses": {"200": dict(answer), **refusals},
    }
    if parameters:
        operation["parameters"] = [dict(parameter) for parameter in parameters]
    return {"post": operation}
