"""The methods of `inference.GRPCInferenceService`.

Not here: keys, errors, ids (see `calls`), tensors (see `tensors`), text (see `generation`).
Source: Open Inference Protocol (KServe v2), gRPC part, with Triton's ModelStreamInfer and Repository calls.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from deepseek.errors import RequestError
from deepseek.serve.orders import Order, Orders
from deepseek.serve.repository import fulfil
from deepseek.serve.rest.answer import Helpers, internal_error
from deepseek.serve.rest.kserve import signature_of
from deepseek.serve.rest.leases import lease, note
from deepseek.serve.rest.response_cache import tensor_key
from deepseek.serve.rest.schema import Form, checked
from deepseek.serve.rest.target import Target
from deepseek.serve.rest.tensor_forms import InferForm, InferOutput, InferParameters, LoadForm
from deepseek.serve.rest.tensor_request import wishes
from deepseek.serve.rest.wire import sentence
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call, Gate
from deepseek.serve.rpc.generation import Generation
from deepseek.serve.rpc.protocol import StalledError, Write, parse, received
from deepseek.serve.rpc.tensors import AnswerWriter, is_raw, read_inputs
from deepseek.serve.rpc.text_forms import parameters

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted, Lease
    from deepseek.serve.service import Service
    from deepseek.serve.tensor.datatypes import TensorSpec
    from deepseek.serve.tensor.engine import TensorEngine

_FRACTION = re.compile(r"[01]?\.[0-9]{1,9}|1")
EXTENSIONS = ("model_stream_infer", "model_repository")
_LOG = logging.getLogger("deepseek.serve")


class Inference:
    """The methods, each from the bytes of a message to the bytes of its answer."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        helpers: Helpers,
        gate: Gate,
        orders: Orders,
        *,
        idle_seconds: float,
        allow_admin: bool,
    ) -> None:
        self._service = service
        self._generation = generation
        self._cache, self._watches = helpers.cache, helpers.watches
        self._gate = gate
        self._orders = orders
        self._idle_seconds = idle_seconds
        self._allow_admin = allow_admin
        self._writer = AnswerWriter()
        self._targets: dict[str, Target[TensorEngine]] = {}

    async def server_live(self, raw: bytes, call: Call) -> bytes:
        """Tell that the process is alive."""
        parse(messages.ServerLiveRequest, raw)
        return _bytes(messages.ServerLiveResponse(live=True))

    async def server_ready(self, raw: bytes, call: Call) -> bytes:
        """Tell whether every model answered its golden samples."""
        parse(messages.ServerReadyRequest, raw)
        return _bytes(messages.ServerReadyResponse(ready=self._service.ready))

    async def model_ready(self, raw: bytes, call: Call) -> bytes:
        """Tell whether a model can be used; NOT_FOUND for one that is not served."""
        request = parse(messages.ModelReadyRequest, raw)
        try:
            with lease(self._service, request.name or None, request.version or None):
                ready = True
        except RequestError as error:
            if error.status != 503:
                raise
            ready = False
        return _bytes(messages.ModelReadyResponse(ready=ready))

    async def server_metadata(self, raw: bytes, call: Call) -> bytes:
        """Tell name, version and extensions."""
        from deepseek import __version__

        parse(messages.ServerMetadataRequest, raw)
        answer = messages.ServerMetadataResponse(name="deepseek", version=__version__, extensions=EXTENSIONS)
        return _bytes(answer)

    async def model_metadata(self, raw: bytes, call: Call) -> bytes:
        """Tell what a model takes and gives."""
        request = parse(messages.ModelMetadataRequest, raw)
        with lease(self._service, request.name or None, request.version or None) as hosted:
            note(call.state, hosted)
            inputs, outputs = signature_of(hosted)
            answer = messages.ModelMetadataResponse(
                name=hosted.name,
                versions=[entry["version"] for entry in self._service.index() if entry["name"] == hosted.name],
                platform="deepseek_text" if hosted.kind == "text" else "deepseek_tensor",
            )
        for specs, tensors in ((inputs, answer.inputs), (outputs, answer.outputs)):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return _bytes(answer)

    async def model_infer(self, raw: bytes, call: Call) -> bytes:
        """Answer one question."""
        request = parse(messages.ModelInferRequest, raw)
        at_once = self._at_once(request, call)
        if at_once is not None:
            return at_once
        with self._use(request) as hosted:
            note(call.state, hosted)
            if hosted.kind == "text":
                answer = await self._generation.whole(request, hosted, call)
            else:
                answer = await self._tensors(request, hosted, call)
        return answer + _id(request) if request.id else answer

    async def model_stream_infer(self, questions: AsyncIterator[bytes], call: Call, write: Write) -> None:
        """Answer questions one after the other; one that fails is told and the stream goes on."""
        async for raw in received(questions, self._idle_seconds):
            answer = messages.ModelStreamInferResponse()
            try:
                self._gate.count(call)
                request = parse(messages.ModelInferRequest, raw)
                answer.infer_response.id = request.id
                async with aclosing(self._streamed(request, call)) as pieces:
                    async for piece in pieces:
                        await write(_in_stream(piece))
                continue
            except StalledError:
                raise
            except RequestError as error:
                refusal = error
            except Exception as error:
                _LOG.error("request %s failed", call.id, exc_info=error)
                refusal = internal_error(call.id)
            answer.error_message = sentence(refusal)
            answer.infer_response.parameters["status"].int64_param = refusal.status
            await write(_bytes(answer))

    async def repository_index(self, raw: bytes, call: Call) -> bytes:
        """Tell the models and their states."""
        request = parse(messages.RepositoryIndexRequest, raw)
        self._admin(request.repository_name)
        answer = messages.RepositoryIndexResponse()
        for entry in self._service.index():
            if not request.ready or entry["state"] == "READY":
                answer.models.add(**entry)
        return _bytes(answer)

    async def repository_load(self, raw: bytes, call: Call) -> bytes:
        """Load a model, or load it anew, beside the one in use."""
        request = parse(messages.RepositoryModelLoadRequest, raw)
        self._admin(request.repository_name)
        await fulfil(self._orders, _order("load", request), call.id)
        return _bytes(messages.RepositoryModelLoadResponse())

    async def repository_unload(self, raw: bytes, call: Call) -> bytes:
        """Take a model out of service once nobody uses it."""
        request = parse(messages.RepositoryModelUnloadRequest, raw)
        self._admin(request.repository_name)
        await fulfil(self._orders, _order("unload", request), call.id)
        return _bytes(messages.RepositoryModelUnloadResponse())

    async def _streamed(self, request: Any, call: Call) -> AsyncGenerator[bytes]:
        with self._use(request) as hosted:
            note(call.state, hosted)
            if hosted.kind == "text":
                async with aclosing(self._generation.pieces(request, hosted, call)) as pieces:
                    async for piece in pieces:
                        yield piece + _id(request)
            else:
                yield await self._tensors(request, hosted, call) + _id(request)

    def _at_once(self, request: Any, call: Call) -> bytes | None:
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
        return answer + _id(request) if request.id else answer

    async def _tensors(self, request: Any, hosted: Hosted, call: Call) -> bytes:
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

    def _use(self, request: Any) -> Lease:
        """Return the model of a ModelInferRequest, to be held by a `with` block."""
        name, version = request.model_name, request.model_version
        if name in self._service.hosted and not version:
            return self._service.use(name)
        return lease(self._service, name or None, version or None)

    def _admin(self, name: str) -> None:
        if not self._allow_admin:
            raise RequestError(
                "models can't be listed, loaded or unloaded over this interface",
                status=403,
                fix="start the server with --allow-admin",
            )
        if name:
            raise RequestError("there is no repository of this name", field="repository_name", status=404)


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


def _order(what: Literal["load", "unload"], request: Any) -> Order:
    """Return the order that a call gives, with the parameters that REST takes. Raises RequestError (400).

    The protocol's parameters have no fractions: a share is a text such as "0.1".
    """
    values: dict[str, Any] = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[name] = None if kind is None else getattr(parameter, kind)
    share = values.get("share")
    if isinstance(share, str) and _FRACTION.fullmatch(share):
        values["share"] = float(share)
    form = checked(LoadForm, values)
    return Order(what, request.model_name, form.version, form.share)


def _id(request: Any) -> bytes:
    """Return the part of a serialized ModelInferResponse that gives the request's id back."""
    return _bytes(messages.ModelInferResponse(id=request.id)) if request.id else b""


def _in_stream(answer: bytes) -> bytes:
    """Return a serialized ModelInferResponse as a serialized ModelStreamInferResponse."""
    message = messages.ModelStreamInferResponse()
    message.infer_response.MergeFromString(answer)
    return _bytes(message)


def _bytes(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]
