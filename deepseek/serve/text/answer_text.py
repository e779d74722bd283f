"""From the tokens of one answer to the text that may be shown, and the probabilities of the tokens it is made of.

Text is held back while a character is incomplete or a stop string may have begun; a token's probability is told with
the piece that shows its text. Not here: when a token comes (see `engine`).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from deepseek.serve.text.plan import TokenLogprob
from deepseek.serve.text.stop import StopMatcher


class TextStream(Protocol):
    """Turns token ids into text, whole characters only."""

    def push(self, token_id: int, /) -> str:
        """Return the characters that became whole with this token, possibly none."""
        ...

    def finish(self) -> str:
        """Return what is left at the end."""
        ...


class Shown(NamedTuple):
    """Text to show now, with the tokens whose text is complete by it."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


class _Told(NamedTuple):
    """A token's probability and the characters of the answer, from `start` up to `end`, that came with it."""

    logprob: TokenLogprob
    start: int
    end: int


class AnswerText:
    """The text of one answer. Without `streaming` all of it comes at the end."""

    def __init__(self, stream: TextStream, stops: tuple[str, ...], *, streaming: bool) -> None:
        self._stream = stream
        self._matcher = StopMatcher(stops)
        self._streaming = streaming
        self._kept: list[str] = []
        self._pushed = 0
        self._shown = 0
        self._incomplete: list[TokenLogprob] = []
        self._told: deque[_Told] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete; nothing is shown beyond it."""
        return self._matcher.stopped

    def push(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take a token."""
        if logprob is not None:
            self._incomplete.append(logprob)
        self._take(self._stream.push(token))

    def finish(self) -> None:
        """Take the end: what was held back is text after all, unless a stop string ended the answer."""
        if not self.stopped:
            self._take(self._stream.finish())
            self._keep(self._matcher.finish())

    def pop(self, *, last: bool = False) -> Shown:
        """Return what may be shown and was not yet; nothing before the last one without `streaming`."""
        if not (self._streaming or last):
            return Shown("", ())
        text = "".join(self._kept)
        self._kept.clear()
        if not self._told:
            return Shown(text, ())
        logprobs = []
        # the text ends for good, so a token that is cut by a stop string counts as far as something of it is shown
        while self._told and (self._told[0].end <= self._shown or (last and self._told[0].start < self._shown)):
            logprobs.append(self._told.popleft().logprob)
        return Shown(text, tuple(logprobs))

    def _take(self, text: str) -> None:
        if text:
            start, self._pushed = self._pushed, self._pushed + len(text)
            if self._incomplete:  # tokens that only together make a character belong to the same text
                self._told.extend(_Told(logprob, start, self._pushed) for logprob in self._incomplete)
                self._incomplete.clear()
            self._keep(self._matcher.push(text))

    def _keep(self, text: str) -> None:
        if text:
            self._shown += len(text)
            self._kept.append(text)
