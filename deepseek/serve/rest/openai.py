"""OpenAI's routes: completions, chats, embeddings, and the list of models.

Not here: their fields (see `schema`), objects (see `wire`) and the way through the engine (see `answer`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from deepseek.errors import RequestError
from deepseek.serve.rest import wire
from deepseek.serve.rest.answer import Answer, Helpers
from deepseek.serve.rest.body import read_json
from deepseek.serve.rest.leases import lease, note, only_text
from deepseek.serve.rest.reply import Reply, json_reply
from deepseek.serve.rest.schema import ChatForm, CompletionForm, EmbeddingForm, parse
from deepseek.serve.text.prepare import prepare_embeddings

if TYPE_CHECKING:
    from starlette.requests import Request

    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

MAX_WAITING = 16
"""Requests for embeddings that may wait for the one that is computed."""


class OpenAI:
    """The routes."""

    def __init__(self, service: Service, helpers: Helpers) -> None:
        self._service = service
        self._helpers = helpers
        self._embedding = asyncio.Semaphore(1)
        self._waiting = 0

    async def models(self, request: Request) -> Reply:
        """Return the list of models."""
        return json_reply({"object": "list", "data": [_card(item) for item in self._service.hosted.values()]})

    async def model(self, request: Request) -> Reply:
        """Return one model of the list."""
        name = request.path_params["name"]
        if name.endswith(":predict"):
            from starlette.exceptions import HTTPException

            raise HTTPException(405, headers={"Allow": "POST"})
        hosted = self._service.hosted.get(name)
        if hosted is None:
            raise RequestError("this model does not exist here", field="model", status=404)
        return json_reply(_card(hosted))

    async def completions(self, request: Request) -> Answer:
        """Continue a text."""
        form = parse(CompletionForm, await read_json(request))
        return Answer(self._service, form, wire.TextWire(), self._helpers)

    async def chat(self, request: Request) -> Answer:
        """Answer in a conversation."""
        form = parse(ChatForm, await read_json(request))
        return Answer(self._service, form, wire.ChatWire(), self._helpers)

    async def embeddings(self, request: Request) -> Reply:
        """Return a vector of unit length for each text."""
        form = parse(EmbeddingForm, await read_json(request))
        with lease(self._service, form.model) as hosted:
            only_text(hosted)
            note(request.scope["state"], hosted)
            prompts = await asyncio.to_thread(prepare_embeddings, hosted.model, form)
            tokens = request.scope["state"]["tokens_in"] = sum(len(prompt) for prompt in prompts)
            if self._waiting >= MAX_WAITING:
                raise RequestError("too many requests for embeddings are waiting", status=429, fix="try again later")
            self._waiting += 1
            try:
                async with self._embedding:
                    vectors = await asyncio.to_thread(hosted.model.embed, prompts)
            finally:
                self._waiting -= 1
            packed = form.encoding_format == "base64"
            return json_reply(wire.embeddings(hosted.name, vectors, tokens, base64=packed))


def _card(hosted: Hosted) -> dict[str, object]:
    return wire.model_card(hosted.name, hosted.created, hosted.model.max_length if hosted.kind == "text" else None)
