"""One answer on its way through the engine: what it has said, and when it ends.

Not here: its tokens' way through the steps (see `sequence`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from deepseek.serve.text.answer_text import AnswerText, Shown, TextStream
from deepseek.serve.text.events import Done, Job, Sink
from deepseek.serve.text.plan import Sampled
from deepseek.serve.text.sequence import TextSequence

EndReason = Literal["stop", "length"]


class Answer:
    """One answer on its way. Only the worker touches it, except `halted`, which is set under the engine's lock."""

    __slots__ = ("_first_token", "_text", "choice", "halted", "job", "sequence", "sink", "submitted", "tokens")

    def __init__(self, choice: int, job: Job, sequence: TextSequence, sink: Sink, now: float) -> None:
        self.choice = choice
        self.job = job
        self.sequence = sequence
        self.sink = sink
        self.submitted = now
        self.tokens = 0
        self.halted = False
        self._first_token = 0.0
        self._text: AnswerText | None = None

    def take(
        self, result: Sampled, now: float, text_stream: Callable[[], TextStream]
    ) -> tuple[EndReason | None, Shown]:
        """Take the next token; return why the answer ends with it, if it does, and what may be shown now.

        Raises what the text stream raises.
        """
        if self._text is None:
            self._text = AnswerText(text_stream(), self.job.stop, streaming=self.job.stream)
        text, token = self._text, result.token
        reason: EndReason | None = "stop" if result.finished or token is None else None
        if token is not None:
            self.tokens += 1
            if self.tokens == 1:
                self._first_token = now
            self.sequence.history.append(token)
            if token in self.job.stop_ids:
                reason = "stop"
            else:
                text.push(token, result.logprob)
                if reason is None and self.tokens >= self.job.sampling.max_new_tokens:
                    reason = "length"
        if reason is not None:
            text.finish()
        if text.stopped:
            reason = "stop"
        return reason, text.pop(last=reason is not None)

    def done(self, reason: Literal["stop", "length", "cancelled"], now: float) -> Done:
        """Return the event for the answer's end."""
        seconds = now - self.submitted
        first = self._first_token - self.submitted if self.tokens else seconds
        return Done(self.choice, reason, self.tokens, first, seconds, self.sequence.cached_tokens or 0)
