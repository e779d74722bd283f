"""Each served model's own routes in the OpenAPI document: its exact inputs, outputs, instances and predictions.

The first `OWN_ENTRIES` models have such entries, so that the document stays small; the others share one.
Not here: routes that are the same for all (see `openapi`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepseek.serve.rest.openapi_routes import JSON, in_json, of_versions, post
from deepseek.serve.rest.openapi_schemas import listed, record, ref
from deepseek.serve.rest.predict import MAX_INSTANCES, RAW_TYPES, Forms

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.tensor.datatypes import TensorSpec

OWN_ENTRIES = 64
"""Models that are described one by one."""
_RAW: dict[str, Any] = {"schema": {}}
_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the JSON part; raw tensors follow it. 0: the whole body is one raw tensor.",
    "schema": {"type": "integer", "minimum": 0},
}


def predict_paths(models: Sequence[Hosted], version: Mapping[str, Any], forms: Forms) -> dict[str, Any]:
    """Return the routes of natural inputs, of the models with their own entries and of all others."""
    paths: dict[str, Any] = {}
    for hosted in models[:OWN_ENTRIES]:
        form = forms.of(hosted)
        summary = f"Predict with {hosted.name}: {form.takes} to {form.gives}"
        raw = sorted(RAW_TYPES.get(form.takes, ()))
        schemas = form.request_schema, form.answer_schema, {"const": hosted.name}
        for suffix, parameters in (("", []), ("/versions/{version}", [version])):
            name = f"predict_{hosted.name}{'_version' if suffix else ''}"
            paths[f"/v1/models/{hosted.name}{suffix}:predict"] = _predict(name, summary, schemas, raw, parameters)
    further = [hosted.name for hosted in models[OWN_ENTRIES:]]
    raw = sorted({kind for kinds in RAW_TYPES.values() for kind in kinds})
    for suffix, path, parameters in of_versions(further, version, "/v1/models/{name}") if further else ():
        one_of = {"enum": further}
        paths[f"{path}:predict"] = _predict(f"predict{suffix}", "Predict", ({}, {}, one_of), raw, parameters)
    return paths


def _predict(
    name: str,
    summary: str,
    schemas: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]],
    raw: Sequence[str],
    parameters: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a route; `schemas` are those of an instance, of a prediction and of the model's name."""
    instance, prediction, model = schemas
    instances = listed(instance, minItems=1, maxItems=MAX_INSTANCES)
    content: dict[str, Any] = {JSON: {"schema": record({"instances": instances})}}
    content |= {kind: _RAW for kind in raw}
    answer = record({"predictions": listed(prediction), "model": model, "version": {"type": "string"}})
    done = {"description": "One prediction for each instance.", "content": {JSON: {"schema": answer}}}
    return post(name, summary, {"required": True, "content": content}, done, parameters=parameters)


def infer_paths(models: Sequence[Hosted], others: list[str], version: Mapping[str, Any]) -> dict[str, Any]:
    """Return the routes of tensors: of the models with their own entries, and of `others` by name."""
    paths: dict[str, Any] = {}
    for hosted in models[:OWN_ENTRIES]:
        for suffix, path, parameters in of_versions([], version, f"/v2/models/{hosted.name}"):
            schemas = f"InferForm.{hosted.name}", f"InferAnswer.{hosted.name}"
            name = f"v2_infer_{hosted.name}{suffix}"
            paths[f"{path}/infer"] = _infer(name, f"Tensors to tensors with {hosted.name}", schemas, parameters)
    for suffix, path, parameters in of_versions(others, version) if others else ():
        schemas = "InferForm", "InferAnswer"
        paths[f"{path}/infer"] = _infer(f"v2_infer{suffix}", "Tensors to tensors", schemas, parameters)
    return paths


def _infer(
    name: str, summary: str, schemas: tuple[str, str], parameters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a route; `schemas` are the names of those of the request and of the answer."""
    body = {"required": True, "content": {JSON: {"schema": ref(schemas[0])}, "application/octet-stream": _RAW}}
    answer = in_json(schemas[1])
    answer["content"]["application/octet-stream"] = _RAW
    return post(name, summary, body, answer, parameters=[*parameters, _LENGTH], error="InferenceError")


def infer_schemas(models: Sequence[Hosted]) -> dict[str, Any]:
    """Return the schemas of requests and answers in tensors of the models with their own entries."""
    schemas: dict[str, Any] = {}
    for hosted in models[:OWN_ENTRIES]:
        signature = hosted.engine.signature
        asked, told = signature.inputs, signature.outputs
        wish = record(
            {"name": {"enum": [spec.name for spec in told]}},
            parameters={"anyOf": [ref("OutputParameters"), {"type": "null"}]},
        )
        schemas[f"InferForm.{hosted.name}"] = record(
            {"inputs": listed(_one_of([_input(spec) for spec in asked]), minItems=len(asked), maxItems=len(asked))},
            id={"type": ["string", "null"], "maxLength": 256},
            parameters={"anyOf": [ref("InferParameters"), {"type": "null"}]},
            outputs={"anyOf": [listed(wish, maxItems=len(told)), {"type": "null"}]},
        )
        schemas[f"InferAnswer.{hosted.name}"] = record(
            {
                "model_name": {"const": hosted.name},
                "model_version": {"type": "string"},
                "outputs": listed(_one_of([_output(spec) for spec in told])),
            },
            id={"type": "string"},
        )
    return schemas


def _input(spec: TensorSpec) -> dict[str, Any]:
    nullable = {"anyOf": [ref("InputParameters"), {"type": "null"}]}
    return record(_about(spec), parameters=nullable, data={"type": "array"})


def _output(spec: TensorSpec) -> dict[str, Any]:
    return record(_about(spec), data=listed(_SCALARS[spec.datatype]), parameters=record({"binary_data_size": _INTEGER}))


def _about(spec: TensorSpec) -> dict[str, Any]:
    """Return name, datatype and shape as the only ones there can be; -1 is any size."""
    sizes = [{"const": size} if size >= 0 else {"type": "integer", "minimum": 0} for size in spec.shape]
    shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
    return {"name": {"const": spec.name}, "datatype": {"const": spec.datatype}, "shape": shape}


def _one_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_SCALARS: dict[str, dict[str, Any]] = {
    "BOOL": {"type": "boolean"},
    "BYTES": {"type": "string"},
    **{f"{sign}INT{bits}": _INTEGER for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), _NUMBER),
}
