"""Triton's `generate` extension for language models: one text in, one text out, whole or as server-sent events.

Source: Triton's "Generate Extension": `{"text_input": ..., "parameters": {...}}` to `{"text_output": ...}`; sampling
fields may stand beside `text_input` too. Not here: OpenAI's routes (see `openai`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from deepseek.errors import RequestError
from deepseek.serve.rest import wire
from deepseek.serve.rest.answer import STREAM_HEADERS, Helpers, as_request_error, jobs_of, send_part
from deepseek.serve.rest.body import read_json
from deepseek.serve.rest.leases import lease, note, only_text
from deepseek.serve.rest.mailbox import Mailbox, collected, submitted
from deepseek.serve.rest.reply import json_reply
from deepseek.serve.rest.schema import CompletionForm, Form, ResponseFormat, checked
from deepseek.serve.rest.text_tensors import SAMPLING, completion_of
from deepseek.serve.text.engine import Done, Failed, Piece

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service


class GenerateParameters(Form):
    """How to sample; the bounds are those of `/v1/completions`."""

    max_tokens: int | None = Field(None, ge=1, le=16384)
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None


class GenerateForm(GenerateParameters):
    """The body of `/v2/models/NAME/generate`."""

    text_input: str
    id: str | None = Field(None, max_length=256)
    parameters: GenerateParameters | None = None


class Generate:
    """An answer of `generate` or `generate_stream`, as an ASGI application."""

    def __init__(self, service: Service, form: CompletionForm, about: dict[str, Any], helpers: Helpers) -> None:
        self._service = service
        self._form = form
        self._about = about
        self._helpers = helpers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises RequestError before anything is sent."""
        with lease(self._service, self._about["name"], self._about.get("version")) as hosted:
            only_text(hosted)
            note(scope["state"], hosted)
            jobs = await jobs_of(hosted.model, self._form, scope["state"])
            async with submitted(hosted.engine, jobs, receive) as mailbox:
                if self._form.stream:
                    await self._send_stream(hosted, mailbox, scope, send)
                    return
                pieces, ends = await collected(mailbox, jobs)
            self._count(hosted, ends[0], scope)
            text = "".join(piece.text for piece in pieces[0])
            await json_reply(self._answer(hosted, text))(scope, receive, send)

    async def _send_stream(self, hosted: Hosted, mailbox: Mailbox, scope: Scope, send: Send) -> None:
        event = await mailbox.get()
        if isinstance(event, Failed):
            raise event.error  # nothing was sent yet, so the client gets a proper status
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        while isinstance(event, Piece):
            await send_part(send, wire.event(self._answer(hosted, event.text)))
            event = await mailbox.get()
        if isinstance(event, Failed):
            told = as_request_error(event.error, scope["state"]["request_id"])
            await send_part(send, wire.event({"error": wire.sentence(told)}), more=False)
            return
        self._count(hosted, event, scope)
        await send_part(send, b"", more=False)

    def _answer(self, hosted: Hosted, text: str) -> dict[str, Any]:
        answer = {"model_name": hosted.name, "model_version": hosted.version, "text_output": text}
        return answer if self._about.get("id") is None else answer | {"id": self._about["id"]}

    def _count(self, hosted: Hosted, done: Done, scope: Scope) -> None:
        scope["state"]["tokens_out"] = done.tokens
        if done.reason != "cancelled":
            self._helpers.metrics.answer(hosted.name, done)


async def generate(service: Service, request: Request, helpers: Helpers, *, stream: bool) -> Generate:
    """Return the answer to a request. Raises RequestError (400), the field named."""
    form = checked(GenerateForm, await read_json(request))
    outer = form.model_dump(include=set(SAMPLING), by_alias=True)
    inner = form.parameters.model_dump(include=set(SAMPLING), by_alias=True) if form.parameters is not None else {}
    sampling = {name: value for name, value in outer.items() if value is not None}
    for name, value in inner.items():
        if value is not None and name in sampling:
            raise RequestError(f"'{name}' is given twice", field=name, fix="keep one of them")
        if value is not None:
            sampling[name] = value
    asked = {form.stream, form.parameters.stream if form.parameters is not None else None} - {None}
    if (not stream) in asked:
        raise RequestError("'stream' is not what this route does", field="stream", fix="POST to the other route")
    completion = completion_of([form.text_input], sampling, stream=stream)
    return Generate(service, completion, {**request.path_params, "id": form.id}, helpers)
