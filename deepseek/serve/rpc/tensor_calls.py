"""Questions in tensors to models of fixed shape: ModelInfer's answers.

Not here: how tensors lie in messages (see `tensors`), and language models (see `generation`).
Source: Open Inference Protocol (KServe v2), gRPC part.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from deepseek.errors import RequestError
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.leases import note
from deepseek.serve.rest.response_cache import tensor_key
from deepseek.serve.rest.schema import Form, checked
from deepseek.serve.rest.target import Target
from deepseek.serve.rest.tensor_forms import InferForm, InferOutput, InferParameters
from deepseek.serve.rest.tensor_request import wishes
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call
from deepseek.serve.rpc.tensors import AnswerWriter, is_raw, read_inputs
from deepseek.serve.rpc.text_forms import parameters

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service
    from deepseek.serve.tensor.datatypes import TensorSpec
    from deepseek.serve.tensor.engine import TensorEngine


class TensorCalls:
    """Answers questions, from a message to the bytes of the answer."""

    def __init__(self, service: Service, helpers: Helpers) -> None:
        self._service = service
        self._cache, self._watches = helpers.cache, helpers.watches
        self._writer = AnswerWriter()
        self._targets: dict[str, Target[TensorEngine]] = {}

    def at_once(self, request: Any, call: Call) -> bytes | None:
        """Answer a plain question to a model that runs as soon as it arrives; None where there is more to it."""
        if request.parameters or request.outputs or self._cache is not None:
            return None
        name = request.model_name
        target = self._targets.get(name)
        if target is None or request.model_version:
            if name in self._service.hosted:
                self._targets[name] = Target(self._service, name, None, _engine_of)
            return None
        found = target.find()
        if found is None or not found[1].runs_at_once:
            return None
        hosted, engine = found
        note(call.state, hosted)
        engine.gate()
        inputs = read_inputs(request, engine.signature.inputs)
        outputs = engine.run_now(inputs)
        if outputs is None:
            return None
        if self._watches is not None:
            self._watches.see(hosted, None, inputs, outputs)
        model = (hosted.name, hosted.version)
        answer = self._writer.write(model, engine.signature.outputs, outputs, raw=is_raw(request))
        return answer + id_of(request) if request.id else answer

    async def answer(self, request: Any, hosted: Hosted, call: Call) -> bytes:
        """Answer a question to a model of fixed shape."""
        hosted.engine.gate()
        own = None
        if request.parameters:
            own = checked(CallParameters, parameters(request.parameters))
        signature = hosted.engine.signature
        wanted = _wanted(request, signature.outputs) if request.outputs else signature.outputs
        inputs = read_inputs(request, signature.inputs)
        key = ""
        if self._cache is not None:
            key = tensor_key(hosted, inputs, (messages.INFERENCE, is_raw(request), *wanted))
            kept = await self._cache.get(key)
            if kept is not None:
                return kept
        outputs = hosted.engine.run_now(inputs)
        if outputs is None:
            deadline = call.deadline if own is None else _deadline(own, call.deadline)
            outputs = await hosted.engine.infer(inputs, deadline=deadline)
        if self._watches is not None:
            self._watches.see(hosted, None, inputs, outputs)
        model = (hosted.name, hosted.version)
        answer = self._writer.write(model, wanted, outputs, raw=is_raw(request))
        if self._cache is not None:
            await self._cache.put(key, answer)
        return answer


class CallParameters(Form):
    """What a whole request to a model of fixed shape may say."""

    timeout: int | None = Field(None, ge=1, le=3_600_000_000)
    """Microseconds after which the answer is no longer wanted."""


def _engine_of(hosted: Hosted) -> TensorEngine | None:
    return hosted.engine if hosted.kind == "tensor" else None


def _deadline(given: CallParameters, deadline: float | None) -> float | None:
    if given.timeout is None:
        return deadline
    own = time.monotonic() + given.timeout / 1e6
    return own if deadline is None else min(own, deadline)


def _wanted(request: Any, outputs: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """Return the outputs asked for. Raises RequestError (400) for an unknown or repeated one, or a parameter."""
    for output in request.outputs:
        if output.parameters:
            raise RequestError("an output has parameters, and none is known here", field="outputs")
    form = InferForm.model_construct(
        outputs=[InferOutput.model_construct(name=output.name, parameters=None) for output in request.outputs]
    )
    return [wish.spec for wish in wishes(form, outputs, InferParameters.model_construct())]


def id_of(request: Any) -> bytes:
    """Return the part of a serialized ModelInferResponse that gives the request's id back."""
    return messages.ModelInferResponse(id=request.id).SerializeToString() if request.id else b""
