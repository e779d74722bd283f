"""From gRPC messages to the forms of the REST interface, so that both have the same bounds and the same sentences.

Not here: tokens and the engine (see `deepseek.serve.text.prepare`), and answers (see `generation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.rest.body import parse_json
from deepseek.serve.rest.schema import ChatForm, CompletionForm, Form, checked, parse
from deepseek.serve.rest.text_tensors import SAMPLING, TEXT_INPUT, TEXT_OUTPUT, completion_of
from deepseek.serve.rpc.tensors import read_inputs
from deepseek.serve.tensor.datatypes import ModelSignature

_SIGNATURE = ModelSignature((TEXT_INPUT,), (TEXT_OUTPUT,))


class TextQuestion(NamedTuple):
    """A ModelInferRequest to a language model, and the shape in which its texts came."""

    form: CompletionForm
    shape: tuple[int, ...]


class _Nothing(Form):
    """The parameters of a question to a language model beside those for sampling."""


def generate_form(request: Any) -> CompletionForm | ChatForm:
    """Return a GenerateRequest as the form of `/v1/completions` or `/v1/chat/completions`.

    Raises RequestError (400) with the field named.
    """
    body: dict[str, Any] = {field.name: value for field, value in request.sampling.ListFields()}
    if "stop" in body:
        body["stop"] = list(body["stop"])
    if "json_schema" in body:
        body["response_format"] = _response_format(body.pop("json_schema"))
    if request.model:
        body["model"] = request.model
    if request.version:
        body["version"] = request.version
    if request.HasField("session_id"):
        body["session_id"] = request.session_id
    if request.HasField("prompt") == bool(request.messages):
        found = "both" if request.messages else "neither"
        raise RequestError("'prompt' or 'messages'", field="prompt", found=found, wanted="one of the two")
    if request.messages:
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        return parse(ChatForm, {**body, "messages": messages, "stream": True})
    return parse(CompletionForm, {**body, "prompt": request.prompt, "stream": True})


def text_question(request: Any, *, stream: bool) -> TextQuestion:
    """Return what a ModelInferRequest asks of a language model; the parameters are fields of `/v1/completions`.

    `response_format` is the JSON that stands there. Raises RequestError (400) with the field named.
    """
    given = parameters(request.parameters)
    sampling = {name: given.pop(name) for name in SAMPLING if name in given}
    checked(_Nothing, given)
    if isinstance(wanted := sampling.get("response_format"), str):
        sampling["response_format"] = _parsed("response_format", wanted)
    inputs = read_inputs(request)
    value = inputs.get(TEXT_INPUT.name)
    if value is None or value.ndim != 2 or value.shape[1] != 1:  # one text a row is taken too
        _SIGNATURE.check(inputs)
    texts = inputs[TEXT_INPUT.name]
    return TextQuestion(completion_of(_decoded(texts), sampling, stream=stream), texts.shape)


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a map of parameters. Raises RequestError (400) for one without a value."""
    values: dict[str, Any] = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            shown = ascii(name)[1:-1][:64]
            raise RequestError(f"the parameter '{shown}' has no value", field=shown)
        values[name] = getattr(parameter, kind)
    return values


def _response_format(json_schema: str) -> dict[str, Any]:
    """Return OpenAI's `response_format` for a schema as JSON text; an empty object asks for any JSON object."""
    schema = _parsed("json_schema", json_schema)
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _parsed(field: str, text: str) -> dict[str, Any]:
    """Return a text as a JSON object. Raises RequestError (400) with the field named."""
    try:
        return parse_json(text.encode("utf-8"))
    except RequestError as error:
        raise RequestError(f"'{field}' is no JSON object", field=field, found=error.problem) from None


def _decoded(texts: np.ndarray) -> list[str]:
    if texts.dtype != object:
        _SIGNATURE.check({TEXT_INPUT.name: texts.reshape(-1)})
    try:
        return [text.decode("utf-8") for text in texts.ravel()]
    except UnicodeDecodeError:
        raise RequestError("a text is not UTF-8", field=TEXT_INPUT.name, wanted="whole characters") from None
