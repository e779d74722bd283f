"""Language models behind tensors: the texts of a BYTES tensor `text_input` are continued into `text_output`.

How to sample is said in the request's `parameters`, with the names and bounds of `/v1/completions`.
Not here: streaming (see `generate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest.answer import jobs_of
from deepseek.serve.rest.mailbox import collected, submitted
from deepseek.serve.rest.schema import CompletionForm, checked
from deepseek.serve.rest.tensor_forms import InferForm, InferParameters
from deepseek.serve.rest.tensor_reply import InferBody, infer_body
from deepseek.serve.rest.tensor_request import raw_input, read_inputs, wishes
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from deepseek.serve.hosted import Hosted

TEXT_INPUT = TensorSpec("text_input", "BYTES", (-1,))
TEXT_OUTPUT = TensorSpec("text_output", "BYTES", (-1,))
_SIGNATURE = ModelSignature((TEXT_INPUT,), (TEXT_OUTPUT,))
SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "stop",
    "response_format",
)
"""Fields of `/v1/completions` that may stand among the parameters of an inference request."""


async def infer_text(
    hosted: Hosted, form: InferForm | None, raw: memoryview, scope: Scope, receive: Receive, metrics: Metrics
) -> InferBody:
    """Return the answer to an infer request. Raises RequestError (400) for anything but one tensor of texts."""
    inputs = raw_input(_SIGNATURE.inputs, raw) if form is None else read_inputs(form, raw)
    shape = _checked_shape(inputs)
    given = dict(form.parameters or {}) if form is not None else {}
    sampling = {name: given.pop(name) for name in SAMPLING if name in given}
    chosen = wishes(form, _SIGNATURE.outputs, checked(InferParameters, given))
    completion = completion_of([_text(item) for item in inputs[TEXT_INPUT.name].ravel()], sampling)
    jobs = await jobs_of(hosted.model, completion, scope["state"])
    async with submitted(hosted.engine, jobs, receive) as mailbox:
        pieces, ends = await collected(mailbox, jobs)
    for end in ends:
        metrics.answer(hosted.name, end)
    scope["state"]["tokens_out"] = sum(end.tokens for end in ends)
    output = np.empty(len(ends), object)
    output[:] = ["".join(piece.text for piece in own).encode("utf-8") for own in pieces]
    request_id = form.id if form is not None else None
    return infer_body(hosted.name, hosted.version, request_id, chosen, {TEXT_OUTPUT.name: output.reshape(shape)})


def completion_of(texts: list[str], sampling: dict[str, Any], *, stream: bool = False) -> CompletionForm:
    """Return texts and parameters as a request for completions. Raises RequestError (400), the field named."""
    values = {name: value for name, value in sampling.items() if value is not None}
    return checked(CompletionForm, {"prompt": texts, "stream": stream, **values})


def _checked_shape(inputs: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Return the shape: texts one by one, or one in each row. Raises RequestError (400)."""
    value = inputs.get(TEXT_INPUT.name)
    if value is None or value.ndim != 2 or value.shape[1] != 1:
        _SIGNATURE.check(inputs)
    return value.shape if value is not None else ()


def _text(item: bytes) -> str:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError("a text is not UTF-8", field=TEXT_INPUT.name, wanted="whole characters") from None
