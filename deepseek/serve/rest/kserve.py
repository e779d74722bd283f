"""The Open Inference Protocol (KServe v2) over HTTP: metadata, health, infer, and the model repository.

Source: the protocol's REST part, with Triton's extensions `binary_tensor_data` and `model_repository`.
Language models take and give a BYTES tensor of texts. Not here: `generate`, and gRPC (see `deepseek.serve.rpc`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.orders import Order, Orders
from deepseek.serve.repository import fulfil
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.body import TENSOR_BODY_LIMIT, load_json, parse_json, read_body
from deepseek.serve.rest.leases import lease, note
from deepseek.serve.rest.reply import Reply, json_reply
from deepseek.serve.rest.response_cache import tensor_key
from deepseek.serve.rest.schema import MODEL_NAME, checked
from deepseek.serve.rest.shortcut import SHORT_BODY, AtOnce
from deepseek.serve.rest.target import Target
from deepseek.serve.rest.tensor_forms import IndexForm, InferForm, InferParameters, RepositoryForm
from deepseek.serve.rest.tensor_reply import InferBody, infer_body, with_id
from deepseek.serve.rest.tensor_request import JSON_LENGTH, raw_input, read_form, read_inputs, wishes
from deepseek.serve.rest.text_tensors import TEXT_INPUT, TEXT_OUTPUT, infer_text

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope

    from deepseek.serve.hosted import Hosted, Lease
    from deepseek.serve.service import Service
    from deepseek.serve.tensor.datatypes import TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_repository", "generate")
_NO_PARAMETERS = InferParameters()
_NO_BYTES = memoryview(b"")


class KServe:
    """The routes below `/v2`."""

    def __init__(self, service: Service, helpers: Helpers, orders: Orders, *, allow_admin: bool) -> None:
        self._service = service
        self._helpers = helpers
        self._orders = orders
        self._allow_admin = allow_admin

    async def server(self, request: Request) -> Reply:
        """Tell what server this is."""
        from deepseek import __version__

        return json_reply({"name": "deepseek", "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Reply:
        """Tell that the process is alive."""
        return json_reply({"live": True})

    async def ready(self, request: Request) -> Reply:
        """Tell whether every model is ready; 503 until then."""
        ready = self._service.ready
        return json_reply({"ready": ready}, status=200 if ready else 503)

    async def model(self, request: Request) -> Reply:
        """Return a model's signature."""
        with self._lease(request) as hosted:
            inputs, outputs = signature_of(hosted)
            versions = [
                line["version"]
                for line in self._service.index()
                if line["name"] == hosted.name and line["state"] == "READY"
            ]
            card = {
                "name": hosted.name,
                "versions": versions,
                "platform": "deepseek_text" if hosted.kind == "text" else "deepseek_tensor",
                "inputs": [_told(spec) for spec in inputs],
                "outputs": [_told(spec) for spec in outputs],
            }
        return json_reply(card)

    async def model_ready(self, request: Request) -> Reply:
        """Tell whether one model is ready; 503 until then, 404 for one that is not there."""
        with self._lease(request) as hosted:
            return json_reply({"name": hosted.name, "ready": True})

    async def infer(self, scope: Scope, receive: Receive, name: str, version: str | None) -> Reply:
        """Answer tensors with tensors."""
        with lease(self._service, name, version) as hosted:
            note(scope["state"], hosted)
            if hosted.kind == "tensor":
                hosted.engine.gate()
            body = await read_body(scope, receive, TENSOR_BODY_LIMIT)
            form, raw = await read_form(scope["headers"], body)
            if hosted.kind == "text":
                return reply_of(await infer_text(hosted, form, raw, scope, receive, self._helpers.metrics))
            return reply_of(await self._infer(hosted, form, raw))

    def at_once(self, scope: Scope, name: str, version: str | None) -> AtOnce | None:
        """Return what answers short bodies of JSON, where the model runs as soon as they arrive."""
        headers = dict(scope["headers"])
        if headers.get(b"content-type") != b"application/json" or JSON_LENGTH in headers:
            return None

        target = Target(self._service, name, version, lambda hosted: hosted.engine if hosted.kind == "tensor" else None)

        def answer(body: bytes) -> bytes | None:
            found = target.find() if len(body) <= SHORT_BODY else None
            if found is None:
                return None
            hosted, engine = found
            engine.gate()
            form = checked(InferForm, parse_json(body, finite=True)) if engine.runs_at_once else None
            if form is None or form.parameters:
                return None
            inputs = read_inputs(form, _NO_BYTES)
            chosen = wishes(form, engine.signature.outputs, _NO_PARAMETERS)
            outputs = None if any(wish.binary for wish in chosen) else engine.run_now(inputs)
            if outputs is None:
                return None
            self._watch(hosted, inputs, outputs)
            return infer_body(hosted.name, hosted.version, form.id, chosen, outputs).body

        return answer

    def _watch(self, hosted: Hosted, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Have the inputs compared with the training data."""
        if self._helpers.watches is not None:
            self._helpers.watches.see(hosted, None, inputs, outputs)

    async def _infer(self, hosted: Hosted, form: InferForm | None, raw: memoryview) -> InferBody:
        signature = hosted.engine.signature
        parameters = _NO_PARAMETERS
        if form is None:
            inputs = raw_input(signature.inputs, raw)
        else:
            inputs = read_inputs(form, raw)
            if form.parameters:
                parameters = checked(InferParameters, form.parameters)
        chosen = wishes(form, signature.outputs, parameters)
        request_id = form.id if form is not None else None
        deadline = None if parameters.timeout is None else time.monotonic() + parameters.timeout / 1e6
        cache = self._helpers.cache
        if cache is None:
            outputs = hosted.engine.run_now(inputs)
            if outputs is None:
                outputs = await hosted.engine.infer(inputs, deadline=deadline)
            self._watch(hosted, inputs, outputs)
            return infer_body(hosted.name, hosted.version, request_id, chosen, outputs)
        key = tensor_key(hosted, inputs, chosen)
        found = await cache.get(key)
        kept = InferBody.unpack(found) if found is not None else None
        if kept is None:
            outputs = await hosted.engine.infer(inputs, deadline=deadline)
            self._watch(hosted, inputs, outputs)
            kept = infer_body(hosted.name, hosted.version, None, chosen, outputs)
            await cache.put(key, kept.pack())
        return with_id(kept, request_id)

    async def index(self, request: Request) -> Reply:
        """List models and versions with their states; with `ready`, only those that answer."""
        self._admin()
        form = checked(IndexForm, await _optional_json(request))
        return json_reply([line for line in self._service.index() if not form.ready or line["state"] == "READY"])

    async def load(self, request: Request) -> Reply:
        """Load or reload a model: the new one is checked before it takes over."""
        return await self._change(request, "load")

    async def unload(self, request: Request) -> Reply:
        """Unload a model once nobody uses it."""
        return await self._change(request, "unload")

    async def _change(self, request: Request, wish: Literal["load", "unload"]) -> Reply:
        self._admin()
        form = checked(RepositoryForm, await _optional_json(request))
        name, state = request.path_params["name"], request.scope["state"]
        state["model"] = name if MODEL_NAME.fullmatch(name) else None
        order = Order(wish, name, form.parameters.version, form.parameters.share)
        await fulfil(self._orders, order, state["request_id"])
        return json_reply({})

    def _admin(self) -> None:
        if not self._allow_admin:
            raise RequestError(
                "models can't be listed, loaded or unloaded over this interface",
                status=403,
                fix="start the server with --allow-admin",
            )

    def _lease(self, request: Request) -> Lease:
        parts = request.path_params
        return lease(self._service, parts["name"], parts.get("version"))


def signature_of(hosted: Hosted) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return a model's inputs and outputs; a language model's are texts."""
    if hosted.kind == "text":
        return (TEXT_INPUT,), (TEXT_OUTPUT,)
    signature = hosted.engine.signature
    return signature.inputs, signature.outputs


def reply_of(answer: InferBody) -> Reply:
    """Return the body of an infer answer as a reply."""
    if answer.json_length is None:
        return Reply(answer.body, "application/json")
    headers = {"inference-header-content-length": str(answer.json_length)}
    return Reply(answer.body, "application/octet-stream", headers=headers)


def _told(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


async def _optional_json(request: Request) -> dict[str, Any]:
    """Return the body as an object; an empty body is an empty object."""
    body = await read_body(request.scope, request.receive, TENSOR_BODY_LIMIT)
    return await load_json(body) if body else {}
