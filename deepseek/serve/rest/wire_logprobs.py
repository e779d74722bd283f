"""Log probabilities in OpenAI's two forms: lists side by side for completions, one object a token for chats.

Source: the OpenAI API reference, `logprobs` of `text_completion` and `chat.completion`.
Not here: how they are computed (see `deepseek.serve.text.sampler`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek.serve.text.models import TextModel
    from deepseek.serve.text.plan import TokenLogprob

_LOWEST = -9999.0
"""Told for a token of probability 0, whose logarithm JSON can't say."""


class TextLogprobs:
    """The log probabilities of one completion, with each token's place in the text."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._offset = 0

    def tell(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the object for some more tokens."""
        texts = [self._model.token_text(item.token) for item in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(item.logprob) for item in tokens],
            "top_logprobs": [self._top(item.top) for item in tokens],
            "text_offset": offsets,
        }

    def _top(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        told: dict[str, float] = {}
        for token, logprob in top:  # likeliest first; halves of characters may look alike
            told.setdefault(self._model.token_text(token), _finite(logprob))
        return told


class ChatLogprobs:
    """The log probabilities of one answer in a chat."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def tell(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the object for some more tokens."""
        content = [
            {**self._one(item.token, item.logprob), "top_logprobs": [self._one(*pair) for pair in item.top]}
            for item in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._model.token_text(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(self._model.token_bytes(token))}


Logprobs = TextLogprobs | ChatLogprobs


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
