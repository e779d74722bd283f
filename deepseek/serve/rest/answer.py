"""From the engine's events to the client: a whole JSON object, or server-sent events.

Runs in the event loop; the engine's thread only drops events into the mailbox. The model is held from the request to
the end of its answer, and when the client goes away the request is cancelled.
Not here: what the objects look like (see `wire`), nor what a session or the cache is (see `deepseek.serve.state`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.monitoring.watch import Watches
from deepseek.serve.rest import wire
from deepseek.serve.rest.conversation import Sessions, in_session, remember
from deepseek.serve.rest.leases import lease, note, only_text
from deepseek.serve.rest.mailbox import Mailbox, collected, submitted
from deepseek.serve.rest.reply import json_reply
from deepseek.serve.rest.response_cache import ResponseCache, is_kept, text_key
from deepseek.serve.rest.schema import ChatForm, CompletionForm
from deepseek.serve.text.engine import Done, Failed, Job, Piece
from deepseek.serve.text.prepare import prepare, size

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from deepseek.serve.hosted import Hosted
    from deepseek.serve.rest.wire_logprobs import Logprobs
    from deepseek.serve.service import Service
    from deepseek.serve.text.models import TextModel

_LOG = logging.getLogger("deepseek.serve")
_LONG = 4096
"""Characters from which on a prompt is tokenized beside the event loop, not in it."""
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Helpers(NamedTuple):
    """What answers need beside the models; all but the metrics are there only where they are switched on."""

    metrics: Metrics
    cache: ResponseCache | None = None
    sessions: Sessions | None = None
    watches: Watches | None = None


class Answer:
    """One request's way through the engine, as an ASGI application."""

    def __init__(self, service: Service, form: CompletionForm | ChatForm, kind: wire.Wire, helpers: Helpers) -> None:
        self._service = service
        self._form = form
        self._wire = kind
        self._helpers = helpers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises RequestError before anything is sent when the queue is full or the first answer fails."""
        with lease(self._service, self._form.model, self._form.version) as hosted:
            only_text(hosted)
            note(scope["state"], hosted)
            form = await in_session(self._helpers.sessions, self._form, hosted.model, scope["state"])
            jobs = await jobs_of(hosted.model, form, scope["state"])
            cache = None if form.stream or not is_kept(form) else self._helpers.cache
            key = "" if cache is None else text_key(hosted, jobs, form, self._wire.whole_kind)
            if cache is not None:
                found = await cache.get(key)
                if found is not None:
                    body = {**_envelope(self._wire, self._wire.whole_kind, hosted.name), **json.loads(found)}
                    await json_reply(body)(scope, receive, send)
                    return
            async with submitted(hosted.engine, jobs, receive) as mailbox:
                run = _Run(hosted, jobs, self._wire, self._helpers.metrics, scope["state"])
                if form.stream:
                    text = await run.send_stream(mailbox, scope, send, include_usage=form.include_usage)
                else:
                    text, body = await run.whole(mailbox)
                    if cache is not None and text is not None:
                        await cache.put(key, wire.dump(body))
                    envelope = _envelope(self._wire, self._wire.whole_kind, hosted.name)
                    await json_reply(envelope | body)(scope, receive, send)
            if text is not None:
                await remember(self._helpers.sessions, self._form, text, scope["state"])


class _Run:
    """One submitted request: counts, and turns events into the client's objects."""

    def __init__(
        self, hosted: Hosted, jobs: Sequence[Job], kind: wire.Wire, metrics: Metrics, state: dict[str, Any]
    ) -> None:
        self._hosted = hosted
        self._jobs = jobs
        self._wire = kind
        self._metrics = metrics
        self._state = state
        self._prompt_tokens = state["tokens_in"]
        self._tokens = self._cached = 0
        self._logprobs: list[Logprobs] = [kind.logprobs(hosted.model) for _ in jobs]

    async def whole(self, mailbox: Mailbox) -> tuple[str | None, dict[str, Any]]:
        """Return the first answer's text, None where the client left; and the choices and counts of all."""
        pieces, ends = await collected(mailbox, self._jobs)
        choices = []
        for index, end in enumerate(ends):
            self._count(end)
            text = "".join(piece.text for piece in pieces[index])
            told = self._tell(index, [item for piece in pieces[index] for item in piece.logprobs])
            choices.append(self._wire.whole(index, text, end.reason, told))
        left = any(end.reason == "cancelled" for end in ends)
        first = None if left else "".join(piece.text for piece in pieces[0])
        return first, {"choices": choices, "usage": self._usage()}

    async def send_stream(self, mailbox: Mailbox, scope: Scope, send: Send, *, include_usage: bool) -> str | None:
        """Stream; return the first answer's text, None where the stream broke off or the client left."""
        event = await mailbox.get()
        if isinstance(event, Failed):
            raise event.error  # nothing was sent yet, so the client gets a proper status
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        envelope = _envelope(self._wire, self._wire.chunk_kind, self._hosted.name)
        writer = wire.ChunkWriter(self._wire, envelope | ({"usage": None} if include_usage else {}))
        for index in range(len(self._jobs)):
            if (opening := self._wire.opening(index)) is not None:
                await send_part(send, writer.choice(opening))
        first: list[str] = []
        left = False
        running = len(self._jobs)
        while True:
            if isinstance(event, Failed):
                await send_part(send, wire.event(told_failure(event.error, scope)), more=False)
                return None
            if isinstance(event, Piece):
                first += [event.text] if event.choice == 0 else []
                await send_part(send, self._chunk(writer, event))
            else:
                self._count(event)
                running -= 1
                await send_part(send, writer.choice(self._wire.piece(event.choice, "", event.reason)))
                left = left or event.reason == "cancelled"
            if not running:
                break
            event = await mailbox.get()
        if include_usage:
            await send_part(send, writer.choice(None, usage=self._usage()))
        await send_part(send, wire.DONE, more=False)
        return None if left else "".join(first)

    def _chunk(self, writer: wire.ChunkWriter, piece: Piece) -> bytes:
        if self._jobs[piece.choice].logprobs is None:
            return writer.piece(piece.choice, piece.text)
        told = self._tell(piece.choice, piece.logprobs)
        return writer.choice(self._wire.piece(piece.choice, piece.text, None, told))

    def _tell(self, index: int, tokens: Sequence[Any]) -> dict[str, Any] | None:
        return None if self._jobs[index].logprobs is None else self._logprobs[index].tell(tokens)

    def _count(self, done: Done) -> None:
        self._tokens += done.tokens
        self._cached += done.cached_tokens
        self._state["tokens_out"] = self._tokens
        if done.reason != "cancelled":
            self._metrics.answer(self._hosted.name, done)

    def _usage(self) -> dict[str, Any]:
        return wire.usage(self._prompt_tokens, self._tokens, self._cached)


async def jobs_of(model: TextModel, form: CompletionForm | ChatForm, state: dict[str, Any]) -> list[Job]:
    """Return a request's jobs, and note prompt and tokens for the audit log; different keys share no pages."""
    state["prompt"] = form.prompt if isinstance(form, CompletionForm) else form.messages
    if size(form) > _LONG or form.response_format is not None:
        jobs = await asyncio.to_thread(prepare, model, form)
    else:
        jobs = prepare(model, form)
    state["tokens_in"] = sum(len(jobs[index].prompt_ids) for index in _first_of_each_prompt(jobs))
    key = state.get("key")
    return jobs if key is None else [job._replace(salt=key) for job in jobs]


def told_failure(error: Exception, scope: Scope) -> dict[str, Any]:
    """Return the error object for a stream that breaks off; an error of ours goes to the log."""
    request_id = scope["state"]["request_id"]
    return wire.error_body(as_request_error(error, request_id), request_id)


def as_request_error(error: Exception, request_id: str) -> RequestError:
    """Return an error as a client may know it; an error of ours goes to the log."""
    if isinstance(error, RequestError):
        return error
    _LOG.error("request %s failed while streaming", request_id, exc_info=error)
    return internal_error(request_id)


def internal_error(request_id: str) -> RequestError:
    """Return what a client may know of an error of ours: its id in the log."""
    return RequestError(f"the server failed to answer; its log has the details under {request_id}", status=500)


async def send_part(send: Send, body: bytes, *, more: bool = True) -> None:
    """Send some more of a streamed answer."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _first_of_each_prompt(jobs: Sequence[Job]) -> list[int]:
    """Return the first job of each prompt: a prompt asked `n` times counts once."""
    return [index for index, job in enumerate(jobs) if index == 0 or job.prompt_ids is not jobs[index - 1].prompt_ids]


def _envelope(kind: wire.Wire, name: str, model: str) -> dict[str, Any]:
    return wire.envelope(kind, name, model, int(time.time()))
