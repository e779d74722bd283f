"""Speech over gRPC: `deepseek.v1.SpeechRecognition/StreamingRecognize`, the messages of the websocket as protobuf.

Not here: what they mean (see `session`), keys and rates (see `deepseek.serve.rpc.calls`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from deepseek.errors import RequestError
from deepseek.serve.rest.schema import checked
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call, Gate
from deepseek.serve.rpc.messages import SPEECH
from deepseek.serve.rpc.protocol import Write, parse, received
from deepseek.serve.speech.session import StartForm, Streams

METHOD = f"{SPEECH}/StreamingRecognize"


class SpeechRecognition:
    """The service."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def handlers(self, gate: Gate) -> dict[str, Any]:
        """Return the handlers of its methods by path."""
        return {f"/{METHOD}": gate.both_stream(METHOD, self.streaming_recognize)}

    async def streaming_recognize(self, questions: AsyncIterator[bytes], call: Call, write: Write) -> None:
        """Answer a stream of samples with results."""
        with self._streams.room():
            requests = received(questions, self._streams.limits.idle_seconds)
            first = await anext(requests, None)
            start = None if first is None else parse(messages.StreamingRecognizeRequest, first)
            if start is None or start.WhichOneof("content") != "start":
                raise RequestError("the first message is the start", field="start", wanted="a SpeechStart")
            async with self._streams.session(_form(start.start), call.state) as session:
                await _tell(write, [session.started()])
                async for raw in requests:
                    request = parse(messages.StreamingRecognizeRequest, raw)
                    if request.WhichOneof("content") != "samples":
                        raise RequestError("after the start come samples", field="samples", wanted="bytes of samples")
                    await _tell(write, await session.take(request.samples))
                await _tell(write, await session.finish())


async def _tell(write: Write, told: list[dict[str, Any]]) -> None:
    for message in told:
        await write(_response(message).SerializeToString())


def _form(start: Any) -> StartForm:
    """Return a start as the form that checks it. Raises RequestError (400)."""
    values = {field.name: value for field, value in start.ListFields() if value != ""}
    return checked(StartForm, values)


def _response(message: Mapping[str, Any]) -> Any:
    values = {name: value for name, value in message.items() if name != "type" and value is not None}
    kind = message["type"]
    if kind in ("partial", "final"):
        return messages.StreamingRecognizeResponse(result={**values, "final": kind == "final"})
    return messages.StreamingRecognizeResponse(**{kind: values})
