"""Where speech begins and ends: as a stream whose answer does not depend on how it is cut, and for whole waveforms.

A frame's score (`speech_scores`) passes a gate with two thresholds: speech starts once enough frames reach the upper
one, at the first frame of that run above the lower one, and ends with the last frame above the lower one before a
pause that is long enough. Speech without any pause in the time that the noise is first estimated from counts as noise.
Not here: speech of one person against another, music.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.audio.checks import check_sample_rate, check_waveform
from deepseek.data.audio.speech_scores import EnergyScore, LikelihoodScore, SpeechScore
from deepseek.errors import ConfigError, DataError

Method = Literal["energy", "statistical"]


@dataclass(frozen=True)
class EndpointSettings:
    """How speech is found. `start` and `stop` None are the method's own thresholds: dB above the noise for "energy"
    (6 and 4), mean log likelihood ratios for "statistical" (0.2 and 0.08). Raises ConfigError for what can't be."""

    method: Method = "energy"
    min_speech_ms: float = 50.0
    min_pause_ms: float = 200.0
    settle_ms: float = 300.0
    """How much sound the first estimate of the noise takes; events come after it."""
    start: float | None = None
    stop: float | None = None
    window_ms: float = 20.0
    hop_ms: float = 10.0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError("unknown method", found=repr(self.method), wanted="'energy' or 'statistical'")
        if not 0 < self.hop_ms <= self.window_ms <= 1000:
            raise ConfigError(
                "the window or the hop is out of range",
                found=f"window_ms={self.window_ms}, hop_ms={self.hop_ms}",
                wanted="0 < hop_ms <= window_ms <= 1000",
            )
        if not all(0 <= one <= 60_000 for one in (self.min_speech_ms, self.min_pause_ms, self.settle_ms)):
            raise ConfigError(
                "a time is out of range",
                found=f"{self.min_speech_ms}, {self.min_pause_ms}, {self.settle_ms} ms",
                wanted="0 to 60000 ms",
            )
        if self.start is not None and self.stop is not None and not self.stop <= self.start:
            raise ConfigError("stop is above start", found=f"{self.stop} > {self.start}", wanted="stop <= start")


@dataclass(frozen=True)
class SpeechEvent:
    """Speech starts at `sample`, or has ended before it."""

    kind: Literal["start", "end"]
    sample: int


@dataclass(frozen=True)
class Segment:
    """Speech from sample `start` up to `end`, which is not part of it."""

    start: int
    end: int


class Endpointer:
    """Finds the ends of speech in a stream: `push` samples as they come, `finish` at its end.

    Events come in order, a start after `min_speech_ms` of it, an end after `min_pause_ms` of pause; they are the same
    however the stream is cut. Raises ConfigError for a sample rate that is out of range or too low for the hop.
    """

    def __init__(self, sample_rate: int, settings: EndpointSettings | None = None) -> None:
        self.settings = settings or EndpointSettings()
        self.hop = int(check_sample_rate(sample_rate) * self.settings.hop_ms / 1000)
        self.window = int(sample_rate * self.settings.window_ms / 1000)
        if self.hop < 8:
            raise ConfigError("the hop is too short", found=f"{self.hop} samples", wanted="at least 8 samples")
        self._score: SpeechScore = EnergyScore() if self.settings.method == "energy" else LikelihoodScore(self.window)
        start, stop = self.settings.start, self.settings.stop
        self._gate = _Gate(
            self._score.start if start is None else start,
            self._score.stop if stop is None else stop,
            max(1, round(self.settings.min_speech_ms / self.settings.hop_ms)),
            max(1, round(self.settings.min_pause_ms / self.settings.hop_ms)),
        )
        self._to_settle = max(1, math.ceil(self.settings.settle_ms / self.settings.hop_ms))
        self._held: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._frames: list[NDArray[np.float64]] | None = []
        self._samples = 0

    def push(self, samples: Tensor) -> list[SpeechEvent]:
        """Return the events that these samples (time,) complete. Raises DataError for what is no finite sound."""
        if samples.ndim != 1:
            raise DataError("the stream is one channel", found=f"shape {tuple(samples.shape)}", wanted="(time,)")
        if len(samples) == 0:
            return []
        check_waveform(samples)
        fresh = samples.detach().cpu().numpy().astype(np.float32, copy=False)
        self._samples += len(fresh)
        held = np.concatenate([self._held, fresh])
        count = max(0, 1 + (len(held) - self.window) // self.hop)
        events: list[SpeechEvent] = []
        for number in range(count):
            start = number * self.hop
            events += self._take(held[start : start + self.window].astype(np.float64))
        self._held = held[count * self.hop :].copy()
        return events

    def finish(self) -> list[SpeechEvent]:
        """Return the events that were waiting for more sound. Nothing may be pushed after."""
        events = self._settle()
        end = self._gate.close()
        if end is None:
            return events
        # speech up to the last frame goes on to the last sample
        place = self._samples if end == self._gate.frames else self._place(end)
        return [*events, SpeechEvent("end", place)]

    def _take(self, frame: NDArray[np.float64]) -> list[SpeechEvent]:
        if self._frames is None:
            return self._decide(frame)
        self._frames.append(frame)
        return self._settle() if len(self._frames) >= self._to_settle else []

    def _settle(self) -> list[SpeechEvent]:
        """Estimate the noise from the frames held until now, then decide on each of them."""
        waiting, self._frames = self._frames, None
        if not waiting:
            return []
        self._score.settle(waiting)
        return [event for frame in waiting for event in self._decide(frame)]

    def _decide(self, frame: NDArray[np.float64]) -> list[SpeechEvent]:
        found = self._gate.pass_frame(self._score.score(frame))
        return [] if found is None else [SpeechEvent(found[0], self._place(found[1]))]

    def _place(self, frame: int) -> int:
        """Return where a frame's own part of the sound begins: one hop in the middle of its window."""
        return frame * self.hop + (self.window - self.hop) // 2 if frame > 0 else 0


class _Gate:
    """From the scores of frames to the numbers of the frames where speech starts, and where it is over."""

    def __init__(self, start: float, stop: float, min_speech: int, min_pause: int) -> None:
        self._start, self._stop = start, stop
        self._min_speech, self._min_pause = min_speech, min_pause
        self.frames = 0
        self._run: int | None = None  # the first frame of the run above `stop`
        self._loud = 0  # frames of the run above `start`
        self._last = 0  # the last frame of speech above `stop`
        self._inside = False
        self._above = False  # whether the frame before was above `stop`

    def pass_frame(self, score: float) -> tuple[Literal["start", "end"], int] | None:
        number, self.frames = self.frames, self.frames + 1
        if self._inside:
            # noise may lift one frame above the lower threshold; speech goes on in the next one, or is loud
            above, before = score >= self._stop, self._above
            self._above = above
            if score >= self._start or (above and before):
                self._last = number
            elif number - self._last >= self._min_pause:
                self._inside, self._run, self._loud = False, None, 0
                return "end", self._last + 1
            return None
        if score < self._stop:
            self._run, self._loud = None, 0
            return None
        self._run = number if self._run is None else self._run
        self._loud += score >= self._start
        if self._loud < self._min_speech:
            return None
        self._inside, self._above, self._last = True, True, number
        return "start", self._run

    def close(self) -> int | None:
        """Return where speech that goes on is over, at the end of the stream."""
        return self._last + 1 if self._inside else None


def detect_speech(waveform: Tensor, sample_rate: int, settings: EndpointSettings | None = None) -> list[Segment]:
    """Return the segments of speech in a waveform (time,), in order.

    The noise is estimated from the quietest frames of the whole, or of its first minute, not of its start alone.
    Raises DataError for a waveform that is empty, has channels or is not finite.
    """
    given = settings or EndpointSettings()
    check_waveform(waveform)
    events: list[SpeechEvent] = []
    endpointer = Endpointer(sample_rate, EndpointSettings(**{**vars(given), "settle_ms": 60_000.0}))
    for piece in torch.split(waveform, 10 * sample_rate, dim=-1):
        events += endpointer.push(piece)
    events += endpointer.finish()
    starts = [event.sample for event in events if event.kind == "start"]
    ends = [event.sample for event in events if event.kind == "end"]
    return [Segment(start, end) for start, end in zip(starts, ends, strict=True)]
