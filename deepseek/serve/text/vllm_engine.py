"""vLLM in the place of our engine: the same jobs go in, the same events come out; vLLM decides what is computed when.

vLLM's client lives on an event loop of its own, on one thread; events reach the sinks there. Its model runs in another
process. Texts, stop strings and the tokens' counts are ours (`answer`). Not here: our settings in vLLM's words
(`vllm_library`), when it is used (`engine_choice`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from deepseek.errors import RequestError
from deepseek.serve.text.answer import Answer, EndReason
from deepseek.serve.text.answer_text import TextStream
from deepseek.serve.text.engine import Ticket
from deepseek.serve.text.events import Done, Event, Failed, Job, Piece, Sink, Stats
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.plan import Sampled, Sampling
from deepseek.serve.text.sequence import TextSequence
from deepseek.serve.text.vllm_library import Vllm, sampled, sampling_values

_PATIENCE = 10.0  # seconds that cancelled answers and vLLM's processes have for their end


class TextSource(Protocol):
    """What the engine needs of a model."""

    def text_stream(self) -> TextStream:
        """Return a fresh decoder for one answer."""
        ...


class VllmEngine:
    """Generates for many requests with one model that vLLM runs.

    The face of `deepseek.serve.text.engine.Engine` but for `step`: there is no step of ours. `Stats` tell no pages.
    """

    def __init__(
        self,
        model: TextSource,
        vllm: Vllm,
        client: Any,
        limits: EngineLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`client` is vLLM's `AsyncLLMEngine` with the model; it is shut down by `close`."""
        self._model, self._vllm, self._client = model, vllm, client
        self.limits = limits
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._live: dict[int, Answer] = {}
        self._tasks: dict[int, asyncio.Task[EndReason]] = {}
        self._reasons: dict[int, Exception | None] = {}
        self._numbers = 0
        self._counts: Counter[str] = Counter()
        self._mean_seconds = 1.0
        self._closing = self._ended = False

    @property
    def failed(self) -> bool:
        """Whether vLLM's processes have died: nothing is answered any more."""
        return bool(self._client.errored)

    def submit(self, jobs: Sequence[Job], sink: Sink) -> Ticket:
        """Queue `jobs` as answers 0, 1, ... of one request: all or none.

        Raises RequestError with status 429 when the queue is full, 503 when the engine is closing or vLLM has failed.
        """
        if not all(job.prompt_ids for job in jobs):
            raise RequestError("the prompt has no tokens", field="prompt", wanted="at least one token")
        now = self._clock()
        with self._changed:
            if self._closing:
                raise _stopping()
            if self.failed:
                raise _dead()
            if len(jobs) > self.limits.max_active + self.limits.max_queue - len(self._live):
                self._counts["refused"] += 1
                raise RequestError("the server has too many requests waiting", status=429, fix="try again later")
            answers = [Answer(choice, job, self._sequence(job), sink, now) for choice, job in enumerate(jobs)]
            self._live.update((answer.sequence.number, answer) for answer in answers)
            self._counts["prompt_tokens"] += sum(len(job.prompt_ids) for job in jobs)
            self._loop.call_soon_threadsafe(self._begin, answers)
        return Ticket(lambda: self._halt(answers, None))

    def start(self) -> None:
        """Run vLLM's client on a thread."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="deepseek-vllm", daemon=True)
        self._thread.start()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for `drain_seconds`, fail the rest with 503, end vLLM."""
        with self._changed:
            self._closing = True
            ended, self._ended = self._ended, True
        if ended:
            return
        if self._thread is None:
            self._loop.run_until_complete(self._shut_down())
        else:
            self._wait(drain_seconds)
            self.abort(_stopping())
            self._wait(_PATIENCE)
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(_PATIENCE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE)
        if not self._loop.is_running():
            self._loop.close()

    def abort(self, error: Exception) -> None:
        """Fail everything that waits or runs with `error`."""
        with self._changed:
            answers = list(self._live.values())
        self._halt(answers, error)

    def stats(self) -> Stats:
        """Return the counters; what stands for pages and steps is 0, but for the answers that vLLM has taken on."""
        with self._changed:
            live, counts = len(self._live), self._counts
            active = min(live, self.limits.max_active)
            return Stats(
                waiting=live - active,
                active=active,
                finished=counts["finished"],
                cancelled=counts["cancelled"],
                failed=counts["failed"],
                refused=counts["refused"],
                prompt_tokens=counts["prompt_tokens"],
                generated_tokens=counts["generated_tokens"],
                cached_tokens=counts["cached_tokens"],
                preemptions=0,
                blocks_used=0,
                blocks_total=0,
                batch_size=active,
            )

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again, by what recent answers took."""
        rounds = len(self._live) / self.limits.max_active
        return max(1, min(60, math.ceil(self._mean_seconds * rounds)))

    def _sequence(self, job: Job) -> TextSequence:
        self._numbers += 1
        return TextSequence(self._numbers, job.prompt_ids, Sampling(job.sampling, job.logprobs), None)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._live, seconds)

    def _halt(self, answers: Sequence[Answer], reason: Exception | None) -> None:
        """End answers from any thread; without a reason they are cancelled."""

        def halt() -> None:
            for answer in answers:
                task = self._tasks.get(answer.sequence.number)
                if task is not None and not answer.halted:
                    answer.halted = True
                    self._reasons[answer.sequence.number] = reason
                    task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing runs on it
            self._loop.call_soon_threadsafe(halt)

    def _begin(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            task = self._loop.create_task(self._answer(answer))
            self._tasks[answer.sequence.number] = task
            task.add_done_callback(lambda task, answer=answer: self._finish(answer, task))  # type: ignore[misc]

    async def _answer(self, answer: Answer) -> EndReason:
        """Have one answer generated; return why it ended. Raises RequestError when it takes too long."""
        job, seconds = answer.job, self.limits.request_seconds
        prompt = self._vllm.tokens_input(job.prompt_ids, cache_salt=job.salt)
        params = self._vllm.sampling(**sampling_values(self._vllm, job))
        reason: EndReason | None = None
        try:
            async with asyncio.timeout(answer.submitted + seconds - self._clock()) as limit:
                outputs = self._client.generate(prompt, params, str(answer.sequence.number))
                async with contextlib.aclosing(outputs):  # vLLM stops computing what is not read to its end
                    async for output in outputs:
                        reason = self._take(answer, output)
                        if reason is not None and not output.finished:
                            break
        except TimeoutError as error:
            if not limit.expired():
                raise
            problem = f"the request took longer than {seconds:g} s"
            raise RequestError(problem, status=504, fix="ask for fewer tokens or try later") from error
        if reason is None:
            raise RuntimeError("vLLM ended a text without a reason")
        return reason

    def _take(self, answer: Answer, output: Any) -> EndReason | None:
        """Take what is new of an answer: show what may be shown; return why it ends, if it does."""
        completion, number = output.outputs[0], answer.sequence.number
        if completion.finish_reason not in (None, "stop", "length"):
            raise RuntimeError(f"vLLM ended a text: {completion.finish_reason}")
        if output.num_cached_tokens:
            answer.sequence.cached_tokens = output.num_cached_tokens
        for result in sampled(number, completion, answer.job):
            reason = self._show(answer, result)
            if reason is not None:
                return reason
        if completion.finish_reason == "length":  # vLLM has less room than was asked for
            self._show(answer, Sampled(number, None, None, None, True))
            return "length"
        return None

    def _show(self, answer: Answer, result: Sampled) -> EndReason | None:
        reason, shown = answer.take(result, self._clock(), self._model.text_stream)
        if shown.text or shown.logprobs:
            self._emit(answer, Piece(answer.choice, shown.text, answer.tokens, shown.logprobs))
        return reason

    def _finish(self, answer: Answer, task: asyncio.Task[EndReason]) -> None:
        """Tell how an answer ended."""
        number, now = answer.sequence.number, self._clock()
        outcome, told = self._end(answer, task, self._reasons.pop(number, None), now)
        with self._changed:
            del self._live[number], self._tasks[number]
            self._counts[outcome] += 1
            self._counts["generated_tokens"] += answer.tokens
            self._counts["cached_tokens"] += answer.sequence.cached_tokens or 0
            if outcome == "finished":
                self._mean_seconds += 0.2 * (now - answer.submitted - self._mean_seconds)
            self._changed.notify_all()
        self._emit(answer, told)

    def _end(
        self, answer: Answer, task: asyncio.Task[EndReason], halted: Exception | None, now: float
    ) -> tuple[str, Done | Failed]:
        if task.cancelled():
            if halted is not None:
                return "failed", Failed(answer.choice, halted)
            return "cancelled", answer.done("cancelled", now)
        error = task.exception()
        if error is None:
            return "finished", answer.done(task.result(), now)
        return "failed", Failed(answer.choice, self._told(answer.job, error))

    def _told(self, job: Job, error: BaseException) -> Exception:
        """Return an error of vLLM as the client may hear it; what is nobody's but ours stays as it is."""
        if self.failed:
            dead = _dead()
            dead.__cause__ = error
            return dead
        if isinstance(error, self._vllm.client_error):
            field = None if job.constraint is None else "response_format"
            return RequestError("the request can't be answered as it is", field=field, found=str(error))
        return error if isinstance(error, Exception) else RuntimeError(f"vLLM raised {error!r}")

    def _emit(self, answer: Answer, event: Event) -> None:
        try:
            answer.sink(event)
        except Exception:  # nobody listens any more (a closed event loop): stop working for them
            self._halt([answer], None)

    async def _shut_down(self) -> None:
        """End vLLM's processes, and what runs on the loop for it."""
        self._client.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _stopping() -> RequestError:
    return RequestError("the server is stopping", status=503, fix="try again in a moment")


def _dead() -> RequestError:
    return RequestError("the model's engine has failed", status=503, fix="load the model again, or restart the server")
