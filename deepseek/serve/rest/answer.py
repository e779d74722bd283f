"""From the engine's events to the client: a whole JSON object, or server-sent events.

Runs in the event loop; the engine's thread only drops events into the mailbox. When the client goes away the request
is cancelled. Not here: what the objects look like (see `wire`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest import wire
from deepseek.serve.rest.reply import json_reply
from deepseek.serve.service import HostedModel
from deepseek.serve.text.engine import Done, Event, Failed, Job, Piece

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_LOG = logging.getLogger("deepseek.serve")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Mailbox:
    """Events on their way from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Take an event; called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self) -> Event:
        """Return the next event."""
        return await self._events.get()


class Answer:
    """One request's way through the engine, as an ASGI application."""

    def __init__(
        self,
        hosted: HostedModel,
        jobs: Sequence[Job],
        form: wire.Wire,
        *,
        stream: bool,
        include_usage: bool,
        metrics: Metrics,
    ) -> None:
        self._hosted = hosted
        self._jobs = jobs
        self._wire = form
        self._stream = stream
        self._include_usage = include_usage
        self._metrics = metrics
        self._prompt_tokens = sum(len(jobs[index].prompt_ids) for index in _first_of_each_prompt(jobs))
        self._tokens = 0
        self._open = len(jobs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit, answer, and cancel what is left.

        Raises RequestError before anything is sent when the queue is full or the first answer fails.
        """
        mailbox = Mailbox()
        ticket = self._hosted.engine.submit(self._jobs, mailbox.put)
        watcher = asyncio.create_task(_on_disconnect(receive, ticket.cancel))
        try:
            if self._stream:
                await self._send_stream(mailbox, scope, send)
            else:
                await self._send_whole(mailbox, scope, receive, send)
        finally:
            ticket.cancel()
            watcher.cancel()

    async def _send_whole(self, mailbox: Mailbox, scope: Scope, receive: Receive, send: Send) -> None:
        texts = ["" for _ in self._jobs]
        reasons = ["" for _ in self._jobs]
        while self._open:
            event = await mailbox.get()
            if isinstance(event, Piece):
                texts[event.choice] += event.text
            elif isinstance(event, Failed):
                raise event.error
            else:
                self._count(event)
                reasons[event.choice] = event.reason
        choices = [self._wire.whole(index, texts[index], reason) for index, reason in enumerate(reasons)]
        body = self._envelope(self._wire.whole_kind)
        body |= {"choices": choices, "usage": wire.usage(self._prompt_tokens, self._tokens)}
        await json_reply(body)(scope, receive, send)

    async def _send_stream(self, mailbox: Mailbox, scope: Scope, send: Send) -> None:
        event = await mailbox.get()
        if isinstance(event, Failed):
            raise event.error  # nothing was sent yet, so the client gets a proper status
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        envelope = self._envelope(self._wire.chunk_kind) | ({"usage": None} if self._include_usage else {})
        writer = wire.ChunkWriter(self._wire, envelope)
        for index in range(self._open):
            if (opening := self._wire.opening(index)) is not None:
                await _send_part(send, writer.choice(opening))
        while True:
            if isinstance(event, Failed):
                await _send_part(send, wire.event(_failure(event.error, scope)), more=False)
                return
            if isinstance(event, Piece):
                await _send_part(send, writer.piece(event.choice, event.text))
            else:
                self._count(event)
                await _send_part(send, writer.choice(self._wire.piece(event.choice, "", event.reason)))
            if not self._open:
                break
            event = await mailbox.get()
        if self._include_usage:
            usage = wire.usage(self._prompt_tokens, self._tokens)
            await _send_part(send, writer.choice(None, usage=usage))
        await _send_part(send, wire.DONE, more=False)

    def _count(self, done: Done) -> None:
        self._open -= 1
        self._tokens += done.tokens
        if done.reason != "cancelled":
            self._metrics.answer(self._hosted.name, done)

    def _envelope(self, kind: str) -> dict[str, Any]:
        return wire.envelope(self._wire, kind, self._hosted.name, int(time.time()))


def _first_of_each_prompt(jobs: Sequence[Job]) -> list[int]:
    """Return the first job of each prompt: a prompt asked `n` times counts once."""
    return [index for index, job in enumerate(jobs) if index == 0 or job.prompt_ids is not jobs[index - 1].prompt_ids]


def _failure(error: Exception, scope: Scope) -> dict[str, Any]:
    request_id = scope["state"]["request_id"]
    if not isinstance(error, RequestError):
        _LOG.error("request %s failed while streaming", request_id, exc_info=error)
        error = internal_error(request_id)
    return wire.error_body(error, request_id)


def internal_error(request_id: str) -> RequestError:
    """Return what a client may know of an error of ours: its id in the log."""
    return RequestError(f"the server failed to answer; its log has the details under {request_id}", status=500)


async def _send_part(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _on_disconnect(receive: Receive, cancel: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()
