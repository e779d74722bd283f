"""From CTC logits to tokens: the best path and prefix-beam search, each of whole recordings or of a stream.

The best path takes the likeliest token of each frame, drops repeats, then blanks. Many paths spell the same text;
prefix-beam search adds their probabilities up and keeps the likeliest beginnings of texts. With a beam as wide as the
number of beginnings it is exact.
Sources: Graves et al. 2006, doi:10.1145/1143844.1143891 (paths); Hannun et al. 2014, "First-Pass Large Vocabulary
Continuous Speech Recognition using Bi-Directional Recurrent DNNs", arXiv:1408.2873 (prefix-beam search).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.checks import check_shape


class Hypothesis(NamedTuple):
    """A text and how likely it is."""

    tokens: tuple[int, ...]
    log_prob: float
    """Natural logarithm of the summed probability of the paths found for it."""


class GreedyStream:
    """Best-path decoding of one recording that arrives in parts."""

    def __init__(self, blank_id: int = 0) -> None:
        self.blank_id = blank_id
        self.last = blank_id

    def push(self, logits: Tensor) -> list[int]:
        """Return the tokens that the next frames add. `logits`: (time, vocab_size)."""
        check_shape("logits", logits, ("time", "vocab_size"))
        tokens = []
        for token in logits.argmax(-1).tolist():
            if token not in (self.last, self.blank_id):
                tokens.append(token)
            self.last = token
        return tokens


def greedy_decode(logits: Tensor, lengths: Tensor | None = None, blank_id: int = 0) -> list[list[int]]:
    """Return the best path's tokens for each row of `logits` (batch, time, vocab_size).

    `lengths` (batch,): frames that count, all unless given.
    """
    check_shape("logits", logits, ("batch", "time", "vocab_size"))
    frames = _frames(logits, lengths)
    return [GreedyStream(blank_id).push(row[:count]) for row, count in zip(logits, frames, strict=True)]


def prefix_beam_search(
    logits: Tensor,
    lengths: Tensor | None = None,
    *,
    blank_id: int = 0,
    beam_size: int = 10,
    top_tokens: int | None = None,
) -> list[list[Hypothesis]]:
    """Return for each row of `logits` (batch, time, vocab_size) up to `beam_size` texts, likeliest first.

    `lengths` (batch,): frames that count, all unless given. `top_tokens`: how many of a frame's likeliest tokens are
    tried; null is 2 * beam_size, and beginnings go on without a new token in any case. Raises ModelError.
    """
    check_shape("logits", logits, ("batch", "time", "vocab_size"))
    if beam_size < 1 or (top_tokens is not None and top_tokens < 1):
        raise ModelError("the beam is too narrow", found=f"{beam_size}, top_tokens {top_tokens}", wanted="at least 1")
    found = []
    for row, count in zip(logits, _frames(logits, lengths), strict=True):
        beam = BeamStream(blank_id, beam_size, top_tokens)
        beam.push(row[:count])
        found.append(beam.best())
    return found


_Beam = dict[tuple[int, ...], tuple[float, float]]
"""For each beginning the log probabilities of its paths that end in a blank, and in its last token."""
_NEVER = -math.inf


class BeamStream:
    """Prefix-beam search of one recording that arrives in parts; settings as in `prefix_beam_search`.

    What is kept is the beam alone, however long the recording.
    """

    def __init__(self, blank_id: int = 0, beam_size: int = 10, top_tokens: int | None = None) -> None:
        self.blank_id = blank_id
        self.beam_size = beam_size
        self.top_tokens = top_tokens or 2 * beam_size
        self._beam: _Beam = {(): (0.0, _NEVER)}

    def push(self, logits: Tensor) -> None:
        """Take the next frames, (time, vocab_size)."""
        check_shape("logits", logits, ("time", "vocab_size"))
        if not len(logits):
            return
        log_probs = logits.detach().float().log_softmax(-1).cpu()
        choices = log_probs.topk(min(self.top_tokens, log_probs.shape[1]), dim=-1).indices
        for frame, tokens in zip(log_probs.tolist(), choices.tolist(), strict=True):
            self._take(frame, tokens)

    def best(self) -> list[Hypothesis]:
        """Return the likeliest texts so far, best first."""
        return [Hypothesis(prefix, _add(*scores)) for prefix, scores in self._beam.items()]

    def _take(self, frame: Sequence[float], tokens: Sequence[int]) -> None:
        blank_id, following = self.blank_id, _Beam()
        for prefix, (blank, token) in self._beam.items():
            whole = _add(blank, token)
            _reach(following, prefix, whole + frame[blank_id], _NEVER)
            if prefix:
                _reach(following, prefix, _NEVER, token + frame[prefix[-1]])
            for new in tokens:
                if new != blank_id:
                    # a repeat is a new token only after a blank
                    before = blank if prefix and prefix[-1] == new else whole
                    _reach(following, (*prefix, new), _NEVER, before + frame[new])
        best = sorted(following.items(), key=lambda item: (-_add(*item[1]), item[0]))
        self._beam = dict(best[: self.beam_size])


def _reach(beam: _Beam, prefix: tuple[int, ...], blank: float, token: float) -> None:
    if blank == token == _NEVER:
        return
    old = beam.get(prefix, (_NEVER, _NEVER))
    beam[prefix] = (_add(old[0], blank), _add(old[1], token))


def _add(first: float, second: float) -> float:
    """Return log(exp(first) + exp(second))."""
    low, high = sorted((first, second))
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))


def _frames(logits: Tensor, lengths: Tensor | None) -> list[int]:
    if lengths is None:
        return [logits.shape[1]] * logits.shape[0]
    check_shape("lengths", lengths, (logits.shape[0],))
    if not bool(((lengths >= 0) & (lengths <= logits.shape[1])).all()):
        raise ModelError("lengths goes past the frames", found=lengths.tolist(), wanted=f"0 to {logits.shape[1]}")
    frames: list[int] = lengths.to(torch.int64).tolist()
    return frames
