"""The OpenAPI 3.1 document of a server: every route, its fields and bounds, its answers and its refusals.

Requests come from the forms that check them, predictions from each served model's own form, so that the document can't
say anything else than what happens. Source: OpenAPI Specification 3.1.1. Not here: each model's own routes (see
`openapi_models`), the parts of routes (`openapi_routes`) and the schemas (`openapi_schemas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deepseek.serve.rest.openapi_models import OWN_ENTRIES, infer_paths, infer_schemas, predict_paths
from deepseek.serve.rest.openapi_routes import (
    EVENTS,
    JSON,
    body,
    get,
    in_json,
    name_of,
    of_versions,
    post,
    refusal,
    version_of,
)
from deepseek.serve.rest.openapi_schemas import components
from deepseek.serve.rest.predict import Forms

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted


def document(hosted: Iterable[Hosted], versions: Iterable[str], forms: Forms) -> dict[str, Any]:
    """Return the document for the models that are served now, and their versions."""
    from deepseek import __version__

    models = list(hosted)
    named = [model.name for model in models]
    version = version_of(sorted(versions))
    texts = [model.name for model in models if model.kind == "text"]
    tensors = [model for model in models if model.kind == "tensor"]
    further = [model.name for model in tensors[OWN_ENTRIES:]]
    return {
        "openapi": "3.1.0",
        "info": {"title": "deepseek", "version": __version__, "description": "Models served over HTTP."},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": {
            **_probes(),
            **_openai(named),
            **predict_paths(tensors, version, forms),
            **_inference(named, version),
            **infer_paths(tensors, [*texts, *further], version),
            **_generate(texts, version),
            **_repository(),
        },
        "components": {
            "schemas": {**components(texts, lone=len(models) == 1), **infer_schemas(tensors)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _probes() -> dict[str, Any]:
    page = {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}
    told = {"description": "Prometheus' text form.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    described = {"description": "This document.", "content": {JSON: {"schema": {"type": "object"}}}}
    return {
        "/": get("page", "The page to try the models", page, open_to_all=True),
        "/health": get("health", "Whether the process lives", in_json("Alive"), open_to_all=True),
        "/ready": get("ready", "Whether the models are ready", in_json("Ready"), also={503: in_json("Ready")}),
        "/metrics": get("metrics", "What Prometheus scrapes", told, also={501: refusal(501, "Error")}),
        "/openapi.json": get("openapi", "This description", described),
    }


def _openai(names: list[str]) -> dict[str, Any]:
    return {
        "/v1/models": get("models", "The models", in_json("ModelList")),
        "/v1/models/{name}": get("model", "One model", in_json("ModelCard"), parameters=[name_of(names)]),
        "/v1/completions": post(
            "completions", "Continue a text", body("CompletionForm"), in_json("Completion", stream=True)
        ),
        "/v1/chat/completions": post(
            "chat", "Answer in a conversation", body("ChatForm"), in_json("ChatCompletion", stream=True)
        ),
        "/v1/embeddings": post("embeddings", "Vectors of texts", body("EmbeddingForm"), in_json("Embeddings")),
    }


def _inference(names: list[str], version: Mapping[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v2": get("v2_server", "What server this is", in_json("ServerMetadata"), error="InferenceError"),
        "/v2/health/live": get("v2_live", "Whether the process lives", in_json("ServerLive"), open_to_all=True),
        "/v2/health/ready": get(
            "v2_ready", "Whether the models are ready", in_json("ServerReady"), also={503: in_json("ServerReady")},
            error="InferenceError",
        ),
    }  # fmt: skip
    for suffix, path, parameters in of_versions(names, version):
        paths[path] = get(
            f"v2_model{suffix}", "A model's inputs and outputs", in_json("ModelMetadata"),
            parameters=parameters, error="InferenceError",
        )  # fmt: skip
        paths[f"{path}/ready"] = get(
            f"v2_model_ready{suffix}", "Whether a model is ready", in_json("ModelReady"),
            parameters=parameters, error="InferenceError",
        )  # fmt: skip
    return paths


def _generate(names: list[str], version: Mapping[str, Any]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    stream = {"description": "Pieces of text.", "content": {"text/event-stream": {"schema": EVENTS}}}
    for suffix, path, parameters in of_versions(names, version) if names else ():
        for verb, answer in (("generate", in_json("GenerateAnswer")), ("generate_stream", stream)):
            paths[f"{path}/{verb}"] = post(
                f"v2_{verb}{suffix}", "Continue a text", body("GenerateForm"), answer,
                parameters=parameters, error="InferenceError",
            )  # fmt: skip
    return paths


def _repository() -> dict[str, Any]:
    done = {"description": "Done.", "content": {JSON: {"schema": {"type": "object"}}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths = {
        "/v2/repository/index": post(
            "v2_index", "Models and versions with their states", body("IndexForm", required=False),
            in_json("RepositoryIndex"), error="InferenceError",
        )
    }  # fmt: skip
    for verb in ("load", "unload"):
        paths[f"/v2/repository/models/{{name}}/{verb}"] = post(
            f"v2_{verb}", f"{verb.capitalize()} a model", body("RepositoryForm", required=False), done,
            parameters=[name], error="InferenceError",
        )  # fmt: skip
    return paths
