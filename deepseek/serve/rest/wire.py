"""OpenAI's wire form: what answers, streamed chunks, model lists and errors look like as JSON.

Source: the OpenAI API reference, objects `text_completion`, `chat.completion`, `chat.completion.chunk`, `model`.
Not here: anything that decides or waits.
"""

from __future__ import annotations

import json
import struct
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import RequestError
from deepseek.serve.rest.wire_logprobs import ChatLogprobs, Logprobs, TextLogprobs
from deepseek.serve.text.models import ContextLengthError, TextModel

DONE = b"data: [DONE]\n\n"

_CODES = {401: "invalid_api_key", 404: "not_found", 413: "too_large", 429: "overloaded", 503: "unavailable"}


def dump(value: Any) -> bytes:
    """Return compact ASCII JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def event(value: Any) -> bytes:
    """Return `value` as one server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return the token counts of a request; those of the prompt that another prompt had already are named if any."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return counts | ({"prompt_tokens_details": {"cached_tokens": cached_tokens}} if cached_tokens else {})


class TextWire:
    """The objects of `/v1/completions`."""

    whole_kind = chunk_kind = "text_completion"
    prefix = "cmpl-"

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the choice that opens a stream; none here."""
        return None

    def piece(self, index: int, text: str, reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        """Return one streamed choice."""
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, index: int, text: str, reason: str, logprobs: Any = None) -> dict[str, Any]:
        """Return one complete choice."""
        return self.piece(index, text, reason, logprobs)

    def logprobs(self, model: TextModel) -> Logprobs:
        """Return what tells the log probabilities of one choice."""
        return TextLogprobs(model)


class ChatWire:
    """The objects of `/v1/chat/completions`."""

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the choice that opens a stream and names the role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str, reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        """Return one streamed choice."""
        return self._chunk(index, {"content": text} if text else {}, reason, logprobs)

    def whole(self, index: int, text: str, reason: str, logprobs: Any = None) -> dict[str, Any]:
        """Return one complete choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, model: TextModel) -> Logprobs:
        """Return what tells the log probabilities of one choice."""
        return ChatLogprobs(model)

    def _chunk(self, index: int, delta: Mapping[str, str], reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


Wire = TextWire | ChatWire


class ChunkWriter:
    """Writes the events of one stream; what is the same in every chunk is put into JSON once."""

    def __init__(self, wire: Wire, envelope: Mapping[str, Any]) -> None:
        self._wire = wire
        self._envelope = envelope
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def choice(self, choice: Mapping[str, Any] | None, **rest: Any) -> bytes:
        """Return the event with one choice, or none."""
        return event({**self._envelope, "choices": [] if choice is None else [choice], **rest})

    def piece(self, index: int, text: str) -> bytes:
        """Return the event with some more text of one answer."""
        if index not in self._frames:
            before, after = self.choice(self._wire.piece(index, "\0", None)).split(b'"\\u0000"')
            self._frames[index] = before, after
        before, after = self._frames[index]
        return before + json.dumps(text).encode("ascii") + after


def envelope(wire: Wire, kind: str, model: str, created: int) -> dict[str, Any]:
    """Return the fields around the choices, with a fresh id."""
    return {"id": wire.prefix + uuid.uuid4().hex, "object": kind, "created": created, "model": model}


def model_card(name: str, created: int, max_length: int | None) -> dict[str, Any]:
    """Return one entry of the model list; `max_length` is ours: prompt and answer together, in tokens."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "deepseek-framework"}
    return card if max_length is None else card | {"max_length": max_length}


def embeddings(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, base64: bool) -> dict[str, Any]:
    """Return the answer of `/v1/embeddings`; as base64 a vector is its float32 numbers, little endian."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _packed(vector: Sequence[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def error_body(error: RequestError, request_id: str) -> dict[str, Any]:
    """Return OpenAI's error object, the request's id beside it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": sentence(error),
            "type": "rate_limit_error" if error.status == 429 else kind,
            "param": error.field,
            "code": _code(error),
        },
        "request_id": request_id,
    }


def sentence(error: RequestError) -> str:
    """Return an error on one line."""
    text = error.problem
    if error.found is not None:
        text += f"; found {error.found}"
    if error.wanted is not None:
        text += f"; wanted {error.wanted}"
    return f"{text}; {error.fix}" if error.fix is not None else text


def _code(error: RequestError) -> str | None:
    if isinstance(error, ContextLengthError):
        return "context_length_exceeded"
    return "model_not_found" if error.status == 404 and error.field == "model" else _CODES.get(error.status)
