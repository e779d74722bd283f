"""The schemas of the OpenAPI document: requests from the forms that check them, answers written out.

Source: JSON Schema draft 2020-12, which OpenAPI 3.1 uses. Not here: routes (see `openapi`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from deepseek.serve.rest.generate import GenerateForm, GenerateParameters
from deepseek.serve.rest.schema import NEUTRAL, ChatForm, CompletionForm, EmbeddingForm, Form
from deepseek.serve.rest.tensor_forms import IndexForm, InferForm, InferParameters, RepositoryForm

_OPENAI: tuple[type[Form], ...] = (CompletionForm, ChatForm, EmbeddingForm)
_OTHERS: tuple[type[Form], ...] = (
    GenerateForm,
    GenerateParameters,
    IndexForm,
    InferForm,
    InferParameters,
    RepositoryForm,
)
_STRING, _INTEGER, _NUMBER, _BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
_REASON = {"enum": ["stop", "length", "cancelled", None]}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Mapping[str, Any], **bounds: int) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": dict(items), **bounds}


def record(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def components(texts: Sequence[str], *, lone: bool) -> dict[str, Any]:
    """Return all schemas by name. `texts` are the language models; the name may be left out of a `lone` model."""
    kinds: list[Any] = [(form, "validation") for form in (*_OPENAI, *_OTHERS)]
    _, made = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = copy.deepcopy(made["$defs"])
    for form in _OPENAI:
        _open_to_neutral(schemas[form.__name__], form)
        if texts:
            schemas[form.__name__]["properties"]["model"] = {"enum": [*texts, None] if lone else list(texts)}
        if not lone:
            schemas[form.__name__]["required"].append("model")
    infer = schemas["InferForm"]["properties"]
    sampling = schemas["GenerateParameters"]["properties"]
    fields = {**schemas["InferParameters"]["properties"], **{k: v for k, v in sampling.items() if k != "stream"}}
    infer["parameters"] = {"anyOf": [record({}, **fields), {"type": "null"}]}
    return {**schemas, **_answers(), **_texts()}


def _open_to_neutral(schema: dict[str, Any], form: type[Form]) -> None:
    """Tell that null means the default, and which of OpenAI's other fields are accepted at which values."""
    properties = schema["properties"]
    for name in properties.keys() - set(schema["required"]):
        properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    for name, values in NEUTRAL.items():
        if name not in form.model_fields:
            properties[name] = {"enum": [*dict.fromkeys(map(_plain, values)), None]} if _flat(values) else {
                "enum": [*values, None]
            }  # fmt: skip


def _flat(values: tuple[Any, ...]) -> bool:
    return all(not isinstance(value, list | dict) for value in values)


def _plain(value: Any) -> Any:
    return int(value) if type(value) is float else value


def _answers() -> dict[str, Any]:
    tensor = record(
        {"name": _STRING, "datatype": _STRING, "shape": listed(_INTEGER)},
        data=listed({}),
        parameters=record({"binary_data_size": _INTEGER}),
    )
    described = record({"name": _STRING, "datatype": _STRING, "shape": listed(_INTEGER)})
    error = {
        "message": _STRING,
        "type": _STRING,
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }
    text = {"model_name": _STRING, "model_version": _STRING, "text_output": _STRING}
    return {
        "Error": record({"error": record(error), "request_id": _STRING}),
        "InferenceError": record({"error": _STRING}),
        "ModelCard": record(
            {"id": _STRING, "object": {"const": "model"}, "created": _INTEGER, "owned_by": _STRING}, max_length=_INTEGER
        ),
        "ModelList": record({"object": {"const": "list"}, "data": listed(ref("ModelCard"))}),
        "Alive": {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]},
        "Ready": record({"status": _STRING, "models": {"type": "object", "additionalProperties": _STRING}}),
        "ServerMetadata": record({"name": _STRING, "version": _STRING, "extensions": listed(_STRING)}),
        "ServerLive": record({"live": _BOOLEAN}),
        "ServerReady": record({"ready": _BOOLEAN}),
        "ModelMetadata": record(
            {
                "name": _STRING,
                "versions": listed(_STRING),
                "platform": _STRING,
                "inputs": listed(described),
                "outputs": listed(described),
            }
        ),
        "ModelReady": record({"name": _STRING, "ready": _BOOLEAN}),
        "InferAnswer": record({"model_name": _STRING, "model_version": _STRING, "outputs": listed(tensor)}, id=_STRING),
        "GenerateAnswer": record(text, id=_STRING),
        "RepositoryIndex": listed(record({"name": _STRING, "version": _STRING, "state": _STRING, "reason": _STRING})),
    }


def _texts() -> dict[str, Any]:
    """Return the schemas of OpenAI's answers."""
    token = {"token": _STRING, "logprob": _NUMBER, "bytes": listed(_INTEGER)}
    told = record({**token, "top_logprobs": listed(record(token))})
    chat_logprobs = {"anyOf": [record({"content": listed(told), "refusal": {"type": "null"}}), {"type": "null"}]}
    tops = listed({"type": "object", "additionalProperties": _NUMBER})
    text_logprobs = record(
        {
            "tokens": listed(_STRING),
            "token_logprobs": listed(_NUMBER),
            "top_logprobs": tops,
            "text_offset": listed(_INTEGER),
        }
    )
    text = record(
        {
            "text": _STRING,
            "index": _INTEGER,
            "logprobs": {"anyOf": [text_logprobs, {"type": "null"}]},
            "finish_reason": _REASON,
        }
    )
    message = record({"role": {"const": "assistant"}, "content": _STRING, "refusal": {"type": "null"}})
    chat = record({"index": _INTEGER, "message": message, "logprobs": chat_logprobs, "finish_reason": _REASON})
    counts = {"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER}
    head = {"id": _STRING, "created": _INTEGER, "model": _STRING, "usage": ref("Usage")}
    vector = {"anyOf": [listed(_NUMBER), _STRING]}
    embedding = record({"object": {"const": "embedding"}, "index": _INTEGER, "embedding": vector})
    return {
        "Usage": record(counts, prompt_tokens_details=record({"cached_tokens": _INTEGER})),
        "Completion": record({**head, "object": {"const": "text_completion"}, "choices": listed(text)}),
        "ChatCompletion": record({**head, "object": {"const": "chat.completion"}, "choices": listed(chat)}),
        "Embeddings": record(
            {
                "object": {"const": "list"},
                "data": listed(embedding),
                "model": _STRING,
                "usage": record({"prompt_tokens": _INTEGER, "total_tokens": _INTEGER}),
            }
        ),
    }
