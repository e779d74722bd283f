"""Text from language models: pieces in a stream (`deepseek.v1.TextGeneration`, ModelStreamInfer) or whole (ModelInfer).

When the call ends, for whatever reason, what is left of its work in the engine is cancelled.
Not here: what a request may ask (see `text_forms`) and the schedule (see `deepseek.serve.text.engine`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.rest.answer import Helpers, jobs_of
from deepseek.serve.rest.conversation import in_session, remember
from deepseek.serve.rest.leases import lease, note, only_text
from deepseek.serve.rest.mailbox import Mailbox
from deepseek.serve.rest.response_cache import is_kept, text_key
from deepseek.serve.rest.schema import ChatForm, CompletionForm
from deepseek.serve.rest.text_tensors import TEXT_OUTPUT
from deepseek.serve.rest.wire_logprobs import ChatLogprobs
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call
from deepseek.serve.rpc.kept import pack, unpack
from deepseek.serve.rpc.protocol import Write, parse
from deepseek.serve.rpc.tensors import AnswerWriter, is_raw
from deepseek.serve.rpc.text_forms import generate_form, text_question
from deepseek.serve.text.engine import Done, Failed, Job, Piece

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.monitoring.metrics import Metrics
    from deepseek.serve.service import Service


class TextRun:
    """One request's answers: the events of the engine, and counts of tokens."""

    def __init__(self, hosted: Hosted, jobs: Sequence[Job], state: dict[str, Any], metrics: Metrics) -> None:
        self._hosted = hosted
        self._jobs = jobs
        self._state = state
        self._metrics = metrics
        self.left = len(jobs)
        """Answers that are not complete."""
        self.is_whole = True
        """Whether no answer was cut off."""
        self.prompt_tokens: int = state["tokens_in"]
        self.completion_tokens = 0
        self.cached_tokens = 0

    async def events(self) -> AsyncGenerator[Piece | Done]:
        """Yield pieces and ends; raises what an answer fails with. Closing it cancels what is not done."""
        mailbox = Mailbox()
        ticket = self._hosted.engine.submit(self._jobs, mailbox.put)
        try:
            while self.left:
                event = await mailbox.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    self._count(event)
                yield event
        finally:
            ticket.cancel()

    def _count(self, done: Done) -> None:
        self.left -= 1
        self.is_whole = self.is_whole and done.reason != "cancelled"
        self.completion_tokens += done.tokens
        self.cached_tokens += done.cached_tokens
        self._state["tokens_out"] = self.completion_tokens
        if done.reason != "cancelled":
            self._metrics.answer(self._hosted.name, done)


class Generation:
    """The methods that give text."""

    def __init__(self, service: Service, helpers: Helpers) -> None:
        self._service = service
        self._helpers = helpers
        self._writer = AnswerWriter()

    async def generate(self, raw: bytes, call: Call, write: Write) -> None:
        """Answer `deepseek.v1.TextGeneration/Generate`."""
        form = generate_form(parse(messages.GenerateRequest, raw))
        with lease(self._service, form.model, form.version) as hosted:
            note(call.state, hosted)
            only_text(hosted)
            asked = await in_session(self._helpers.sessions, form, hosted.model, call.state)
            jobs = await jobs_of(hosted.model, asked, call.state)
            cache = self._helpers.cache if is_kept(asked) else None
            key = "" if cache is None else text_key(hosted, jobs, asked, messages.GENERATION)
            found = None if cache is None else await cache.get(key)
            if found is not None:
                for part in unpack(found):
                    await write(part)
                return
            run = TextRun(hosted, jobs, call.state, self._helpers.metrics)
            parts, text = await self._send(run, hosted, write, keep=cache is not None)
            if cache is not None and run.is_whole:
                await cache.put(key, pack(parts))
            if run.is_whole:
                await remember(self._helpers.sessions, form, text, call.state)

    async def _send(self, run: TextRun, hosted: Hosted, write: Write, *, keep: bool) -> tuple[list[bytes], str]:
        """Write the responses; return them, if they are to be kept, and the first answer's text."""
        logprobs = ChatLogprobs(hosted.model)
        parts, first = [], []
        async with aclosing(run.events()) as events:
            async for event in events:
                part = _response(run, event, logprobs).SerializeToString()
                if keep:
                    parts.append(part)
                if isinstance(event, Piece) and event.choice == 0:
                    first.append(event.text)
                await write(part)
        return parts, "".join(first)

    async def whole(self, request: Any, hosted: Hosted, call: Call) -> bytes:
        """Answer ModelInfer of a language model: the answers in the shape of the texts."""
        question = text_question(request, stream=False)
        _check_outputs(request)
        run = await self._begin(hosted, question.form, call)
        texts = [""] * run.left
        async with aclosing(run.events()) as events:
            async for event in events:
                if isinstance(event, Piece):
                    texts[event.choice] += event.text
        return self._answer(request, hosted, texts, question.shape)

    async def pieces(self, request: Any, hosted: Hosted, call: Call) -> AsyncGenerator[bytes]:
        """Yield the answers to ModelStreamInfer of a language model as they are generated."""
        question = text_question(request, stream=True)
        _check_outputs(request)
        run = await self._begin(hosted, question.form, call)
        async with aclosing(run.events()) as events:
            async for event in events:
                text = event.text if isinstance(event, Piece) else ""
                yield self._answer(request, hosted, [text], (1,)) + _about(run, event)

    async def _begin(self, hosted: Hosted, form: CompletionForm | ChatForm, call: Call) -> TextRun:
        return TextRun(hosted, await jobs_of(hosted.model, form, call.state), call.state, self._helpers.metrics)

    def _answer(self, request: Any, hosted: Hosted, texts: Sequence[str], shape: tuple[int, ...]) -> bytes:
        values = np.empty(len(texts), object)
        values[:] = [text.encode("utf-8") for text in texts]
        outputs = {TEXT_OUTPUT.name: values.reshape(shape)}
        return self._writer.write((hosted.name, hosted.version), (TEXT_OUTPUT,), outputs, raw=is_raw(request))


def _response(run: TextRun, event: Piece | Done, logprobs: ChatLogprobs) -> Any:
    """Return an event as a GenerateResponse; the last one has the usage."""
    answer = messages.GenerateResponse(choice=event.choice)
    if isinstance(event, Piece):
        answer.text = event.text
        for one in logprobs.tell(event.logprobs)["content"] if event.logprobs else ():
            answer.logprobs.add(chosen=_likely(one), top=[_likely(other) for other in one["top_logprobs"]])
    else:
        answer.finish_reason = event.reason
    if not run.left:
        answer.usage.prompt_tokens = run.prompt_tokens
        answer.usage.completion_tokens = run.completion_tokens
        answer.usage.total_tokens = run.prompt_tokens + run.completion_tokens
        answer.usage.cached_tokens = run.cached_tokens
    return answer


def _likely(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a token as REST tells it as the fields of a Likely."""
    return {"token": told["token"], "raw": bytes(told["bytes"]), "logprob": told["logprob"]}


def _about(run: TextRun, event: Piece | Done) -> bytes:
    """Return the parameters of a streamed answer as a part of a serialized ModelInferResponse."""
    answer = messages.ModelInferResponse()
    given = answer.parameters
    given["choice"].int64_param = event.choice
    given["triton_final_response"].bool_param = not run.left
    if isinstance(event, Done):
        given["finish_reason"].string_param = event.reason
    if not run.left:
        given["prompt_tokens"].int64_param = run.prompt_tokens
        given["completion_tokens"].int64_param = run.completion_tokens
    return answer.SerializeToString()  # type: ignore[no-any-return]


def _check_outputs(request: Any) -> None:
    """Raise RequestError (400) where other outputs are asked for than there are."""
    for output in request.outputs:
        if output.name != TEXT_OUTPUT.name:
            shown = ascii(output.name)[1:-1][:64]
            raise RequestError(f"unknown output '{shown}'", field="outputs", wanted=TEXT_OUTPUT.name)
