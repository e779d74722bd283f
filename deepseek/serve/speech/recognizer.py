"""Recognition of a stream of samples: partial texts that only grow, and a final text for every utterance.

Utterances are found by the endpointer; each is recognised as a recording of its own, from a little before its speech to
where its end was noticed, so its final text is that of `forward` over this very piece under the same chunk mask. A
partial text is the best path so far, a final one the best of a prefix beam, which may differ from the partials. Where
pieces are cut changes nothing: decisions are made on blocks of a fixed length from the start of the stream.
Not here: bytes to samples, clocks, clients (see `session`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.data.audio.endpointer import Endpointer, EndpointSettings
from deepseek.models.conformer_stream import ConformerStream
from deepseek.models.ctc_decoding import BeamStream, GreedyStream
from deepseek.serve.speech.features import FeatureStream
from deepseek.serve.speech.model import SpeechModel

_BLOCK_SECONDS = 0.02
_MARGIN_SECONDS = 0.1  # more silence before speech would fill chunks in which nothing is heard
_UNFINISHED = "\ufffd"  # a character of which only some bytes are there


class Result(NamedTuple):
    """What is known of an utterance; seconds from the start of the stream."""

    final: bool
    utterance: int
    text: str
    tokens: tuple[int, ...]
    start: float
    """Where speech begins."""
    end: float
    """Where it ends; of a partial result how far it has come."""
    heard: tuple[float, float]
    """What was recognised: a little more to both sides."""


class Utterance:
    """One recording that arrives in pieces. `beam_size` 1: the best path alone."""

    def __init__(self, model: SpeechModel, sample_rate: int, beam_size: int) -> None:
        self._spell = model.spell
        self._features = FeatureStream(model.stages, sample_rate)
        self._stream = ConformerStream(model.conformer)
        self._path = GreedyStream(model.blank_id)
        self._beam = BeamStream(model.blank_id, beam_size) if beam_size > 1 else None
        self.tokens: list[int] = []

    @property
    def state_bytes(self) -> int:
        """Bytes of the model's state."""
        return self._stream.state_bytes

    @property
    def text(self) -> str:
        """The best path so far: later texts before the final one begin with it."""
        return self._spell(self.tokens).rstrip(_UNFINISHED)

    def push(self, samples: Tensor) -> bool:
        """Take samples (time,); return whether the text grew."""
        return self._take(self._features.push(samples))

    def finish(self) -> str:
        """Return the whole text."""
        self._take(self._features.finish())
        self._decode(self._stream.finish()[0])
        if self._beam is not None:
            self.tokens = list(self._beam.best()[0].tokens)
        return self._spell(self.tokens)

    def _take(self, features: Tensor) -> bool:
        if not len(features):
            return False
        return self._decode(self._stream.push(features[None])[0])

    def _decode(self, logits: Tensor) -> bool:
        found = self._path.push(logits)
        self.tokens += found
        if self._beam is not None:
            self._beam.push(logits)
        return bool(found)


class Recognizer:
    """A stream with one or more utterances. `endpoints` None: all of it is one.

    An utterance longer than `max_utterance` seconds is cut. `beam_size` may be changed; it holds from the next
    utterance on. Raises ConfigError for a rate that can't be.
    """

    def __init__(
        self,
        model: SpeechModel,
        sample_rate: int,
        *,
        endpoints: EndpointSettings | None = None,
        max_utterance: float = 30.0,
        beam_size: int = 8,
    ) -> None:
        self._model, self._rate = model, sample_rate
        self.beam_size = beam_size
        self._endpointer = None if endpoints is None else Endpointer(sample_rate, endpoints)
        self._block = max(1, int(sample_rate * _BLOCK_SECONDS))
        self._margin = int(sample_rate * _MARGIN_SECONDS)
        looked_at = 0.0 if endpoints is None else (endpoints.settle_ms + endpoints.min_speech_ms) / 1000 + 0.1
        self._memory = self._margin + int(sample_rate * looked_at)
        self._longest = int(sample_rate * max_utterance)
        self._waiting = torch.zeros(0)  # less than a block
        self._past = torch.zeros(0)  # what came before, while nobody speaks
        self._place = 0  # samples in whole blocks that were judged
        self._begun = self._ended = 0
        self._spoken = 0  # where the utterance's speech begins
        self._fresh: list[Tensor] = []
        self._utterance: Utterance | None = None
        self.utterances = 0
        FeatureStream(model.stages, sample_rate)  # settings that can't be at this rate are told now
        if self._endpointer is None:
            self._begin(0, 0)

    def push(self, samples: Tensor) -> list[Result]:
        """Return what these samples (time,) float32 make known. Raises DataError for what is no finite sound."""
        joined = torch.cat([self._waiting, samples])
        whole = len(joined) // self._block * self._block
        self._waiting = joined[whole:]
        results: list[Result] = []
        for block in torch.split(joined[:whole], self._block) if whole else ():
            results += self._judge(block)
        return results + self._told()

    def finish(self) -> list[Result]:
        """Return what is left to say. Nothing may be pushed after."""
        results = self._judge(self._waiting) if len(self._waiting) else []
        if self._endpointer is not None:
            for event in self._endpointer.finish():
                results += self._end(event.sample) if event.kind == "end" else self._start(event.sample)
        return results + (self._end(self._place) if self._utterance is not None else [])

    @property
    def state_bytes(self) -> int:
        """Bytes of the model's state now."""
        return 0 if self._utterance is None else self._utterance.state_bytes

    def _judge(self, block: Tensor) -> list[Result]:
        self._place += len(block)
        results: list[Result] = []
        if self._utterance is not None:
            self._fresh.append(block)
            if self._endpointer is not None and self._place - self._begun >= self._longest:
                results += self._end(self._place)
                self._begin(self._place, self._place)
        else:
            self._past = torch.cat([self._past, block])[-self._memory :]
        if self._endpointer is not None:
            for event in self._endpointer.push(block):
                results += self._end(event.sample) if event.kind == "end" else self._start(event.sample)
        return results

    def _start(self, sample: int) -> list[Result]:
        """Begin an utterance a little before its speech, but not within the one before."""
        first = max(self._ended, sample - self._margin, self._place - len(self._past), 0)
        self._begin(first, max(first, sample))
        self._fresh.append(self._past[len(self._past) - (self._place - first) :])
        self._past = self._past[:0]
        return []

    def _begin(self, first: int, spoken: int) -> None:
        self._utterance = Utterance(self._model, self._rate, self.beam_size)
        self._begun, self._spoken, self._fresh = first, spoken, []

    def _end(self, spoken: int) -> list[Result]:
        """Tell the utterance whose speech ends at a sample."""
        utterance = self._utterance
        if utterance is None:
            return []
        self._feed(utterance)
        text = utterance.finish()
        self._utterance, self._ended = None, self._place
        number, self.utterances = self.utterances, self.utterances + 1
        return [self._result(True, number, text, utterance, max(spoken, self._spoken))]

    def _told(self) -> list[Result]:
        """Recognise what has come and tell the text if it grew."""
        utterance = self._utterance
        if utterance is None or not self._feed(utterance):
            return []
        return [self._result(False, self.utterances, utterance.text, utterance, self._place)]

    def _result(self, final: bool, number: int, text: str, utterance: Utterance, end: int) -> Result:
        heard = self._begun / self._rate, self._place / self._rate
        span = self._spoken / self._rate, end / self._rate
        return Result(final, number, text, tuple(utterance.tokens), *span, heard)

    def _feed(self, utterance: Utterance) -> bool:
        fresh, self._fresh = self._fresh, []
        return utterance.push(torch.cat(fresh)) if fresh else False
