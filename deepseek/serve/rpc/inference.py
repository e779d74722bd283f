"""The methods of `inference.GRPCInferenceService`.

Not here: keys, errors, ids (see `calls`), answers of tensors (see `tensor_calls`) and text (see `generation`).
Source: Open Inference Protocol (KServe v2), gRPC part, with Triton's ModelStreamInfer and Repository calls.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from deepseek.errors import RequestError
from deepseek.serve.orders import Order, Orders
from deepseek.serve.repository import fulfil
from deepseek.serve.rest.answer import Helpers, internal_error
from deepseek.serve.rest.kserve import signature_of
from deepseek.serve.rest.leases import lease, note
from deepseek.serve.rest.schema import checked
from deepseek.serve.rest.tensor_forms import LoadForm
from deepseek.serve.rest.wire import sentence
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call, Gate
from deepseek.serve.rpc.generation import Generation
from deepseek.serve.rpc.protocol import StalledError, Write, parse, received
from deepseek.serve.rpc.tensor_calls import TensorCalls, id_of

if TYPE_CHECKING:
    from deepseek.serve.hosted import Lease
    from deepseek.serve.service import Service

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
        self._gate = gate
        self._orders = orders
        self._idle_seconds = idle_seconds
        self._allow_admin = allow_admin
        self._tensors = TensorCalls(service, helpers)

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
        at_once = self._tensors.at_once(request, call)
        if at_once is not None:
            return at_once
        with self._use(request) as hosted:
            note(call.state, hosted)
            if hosted.kind == "text":
                answer = await self._generation.whole(request, hosted, call)
            else:
                answer = await self._tensors.answer(request, hosted, call)
        return answer + id_of(request) if request.id else answer

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
                        yield piece + id_of(request)
            else:
                yield await self._tensors.answer(request, hosted, call) + id_of(request)

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


def _in_stream(answer: bytes) -> bytes:
    """Return a serialized ModelInferResponse as a serialized ModelStreamInferResponse."""
    message = messages.ModelStreamInferResponse()
    message.infer_response.MergeFromString(answer)
    return _bytes(message)


def _bytes(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]
