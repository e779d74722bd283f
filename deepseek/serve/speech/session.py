"""One client's stream of speech, and all of them together: its start, its bounds, its samples, its clocks.

It speaks in plain values, so that the websocket and gRPC only carry them. What a session holds is given back when its
`with` block ends, however it ends.
Not here: recognition (see `recognizer`), protocols (see `websocket`, `rpc`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from deepseek.data.audio.endpointer import EndpointSettings
from deepseek.errors import ConfigError, DataError, RequestError
from deepseek.serve.rest.leases import lease, note
from deepseek.serve.rest.schema import Form
from deepseek.serve.speech.limits import StreamLimits
from deepseek.serve.speech.model import speech_model
from deepseek.serve.speech.recognizer import Recognizer, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

_Work = Callable[[Recognizer], list[Result]]
_WIDTHS = {"pcm16": 2, "float32": 4}
_MOST_BUSY = 0.5
"""Share of real time above which final texts are best paths, as the machine hardly keeps up."""
_SETTLED_SECONDS = 5.0
"""Sound after which that share is judged."""


class StartForm(Form):
    """The first message of a stream."""

    type: Literal["start"] = "start"
    model: str | None = None
    version: str | None = None
    sample_rate: int = Field(16_000, ge=4_000, le=192_000)
    """Hz of the samples that follow, one channel."""
    encoding: Literal["pcm16", "float32"] = "pcm16"
    """Little-endian."""
    endpoints: bool = True
    """Whether pauses end utterances; else the whole stream is one."""
    pause_ms: int = Field(500, ge=100, le=5_000)
    """How long a pause ends an utterance."""
    partial: bool = True
    """Whether texts are told while they grow."""


class StreamStats(NamedTuple):
    """Counts since the start, but for `open`, which is now; seconds are sums."""

    open: int
    streams: int
    refused: int
    utterances: int
    audio_seconds: float
    busy_seconds: float
    """Spent on recognising; divided by `audio_seconds` it is the real-time factor."""


class Streams:
    """All streams of one server, on however many event loops."""

    def __init__(self, service: Service, limits: StreamLimits | None = None) -> None:
        self.limits = limits or StreamLimits()
        self._service = service
        self._lock = threading.Lock()
        self._stats = StreamStats(0, 0, 0, 0, 0.0, 0.0)

    def stats(self) -> StreamStats:
        """Return the counts."""
        with self._lock:
            return self._stats

    @property
    def stopping(self) -> bool:
        """Whether the server takes no more."""
        return self._service.stopping

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Hold one of the places for streams. Raises RequestError: 429 where none is free, 503 while stopping."""
        if self.stopping:
            raise RequestError("the server is stopping", status=503, fix="try again in a moment")
        with self._lock:
            if self._stats.open >= self.limits.max_streams:
                self._stats = self._stats._replace(refused=self._stats.refused + 1)
                raise RequestError(
                    "too many streams of speech at once", status=429, wanted=f"at most {self.limits.max_streams}"
                )
            self._stats = self._stats._replace(open=self._stats.open + 1, streams=self._stats.streams + 1)
        try:
            yield
        finally:
            self.count(open=-1)

    @contextlib.asynccontextmanager
    async def session(self, start: StartForm, state: dict[str, Any]) -> AsyncIterator[Session]:
        """Hold a model and a stream on it. Raises RequestError for a model that can't stream and wrong settings."""
        with lease(self._service, start.model, start.version) as hosted:
            note(state, hosted)
            session = await asyncio.to_thread(Session, self, start, hosted)
            try:
                yield session
            finally:
                session.close()

    def count(self, **more: float) -> None:
        """Add to the counts."""
        with self._lock:
            self._stats = self._stats._replace(**{name: getattr(self._stats, name) + by for name, by in more.items()})


class Session:
    """One stream on one model; its methods are called one after the other."""

    def __init__(self, streams: Streams, start: StartForm, hosted: Hosted) -> None:
        self.limits = streams.limits
        self._streams = streams
        self._start = start
        self._hosted = hosted
        endpoints = EndpointSettings(min_pause_ms=float(start.pause_ms)) if start.endpoints else None
        try:
            self._recognizer: Recognizer | None = Recognizer(
                speech_model(hosted.bundle),
                start.sample_rate,
                endpoints=endpoints,
                max_utterance=self.limits.max_utterance_seconds,
                beam_size=self.limits.beam_size,
            )
        except ConfigError as error:
            raise _refused(error, "sample_rate") from error
        longest = self.limits.max_seconds
        self._most_seconds = longest if start.endpoints else min(longest, self.limits.max_whole_seconds)
        self._samples = self._counted = 0
        self._busy = 0.0

    @property
    def seconds(self) -> float:
        """Sound that has come."""
        return self._samples / self._start.sample_rate

    def started(self) -> dict[str, Any]:
        """Return the answer to the start."""
        told = {"type": "started", "model": self._hosted.name, "version": self._hosted.version}
        return {**told, "sample_rate": self._start.sample_rate, "encoding": self._start.encoding}

    async def take(self, data: bytes) -> list[dict[str, Any]]:
        """Return what these samples make known. Raises RequestError: 413 for too many, 400 for what is no sound."""
        came = time.perf_counter()
        samples = self._decoded(data)
        return await self._told(lambda recognizer: recognizer.push(samples), came)

    async def finish(self) -> list[dict[str, Any]]:
        """Return the last results, and the sum of the stream."""
        found = await self._told(lambda recognizer: recognizer.finish(), time.perf_counter())
        utterances = 0 if self._recognizer is None else self._recognizer.utterances
        done = {"type": "done", "utterances": utterances, "seconds": round(self.seconds, 3)}
        return [*found, {**done, "real_time_factor": self._factor()}]

    def close(self) -> None:
        """Give the state back."""
        self._recognizer = None

    def _decoded(self, data: bytes) -> Tensor:
        most, width = self.limits.max_frame_bytes, _WIDTHS[self._start.encoding]
        if len(data) > most:
            raise RequestError(
                "the message with samples is too long", status=413, found=f"{len(data)} bytes", wanted=f"up to {most}"
            )
        if len(data) % width:
            raise RequestError(
                "the samples are cut in the middle", found=f"{len(data)} bytes", wanted=f"a multiple of {width}"
            )
        self._samples += len(data) // width
        if self.seconds > self._most_seconds:
            wanted = f"at most {self._most_seconds:g} s"
            raise RequestError("the stream is too long", status=413, wanted=wanted, fix="open another one")
        if width == 2:
            return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)
        values = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
        if not bool(torch.isfinite(values).all()):
            raise RequestError("the samples hold NaN or infinity", wanted="finite numbers, usually -1 to 1")
        return values.clamp(-1e4, 1e4)

    async def _told(self, work: _Work, came: float) -> list[dict[str, Any]]:
        recognizer = self._recognizer
        if recognizer is None:
            raise RequestError("the stream has ended", fix="open another one")
        before, samples = recognizer.utterances, self._samples
        try:
            results, seconds = await asyncio.to_thread(_timed, work, recognizer)
        except DataError as error:
            raise _refused(error, None) from error
        self._busy += seconds
        slow = self.seconds > _SETTLED_SECONDS and self._busy > _MOST_BUSY * self.seconds
        recognizer.beam_size = 1 if slow else self.limits.beam_size
        fresh, self._counted = samples - self._counted, samples
        self._streams.count(
            utterances=recognizer.utterances - before,
            audio_seconds=fresh / self._start.sample_rate,
            busy_seconds=seconds,
        )
        shown: Sequence[Result] = results if self._start.partial else [one for one in results if one.final]
        return [self._message(one, came) for one in shown]

    def _message(self, result: Result, came: float) -> dict[str, Any]:
        told: dict[str, Any] = {
            "type": "final" if result.final else "partial",
            "utterance": result.utterance,
            "text": result.text,
            "start": round(result.start, 3),
            "end": round(result.end, 3),
            "real_time_factor": self._factor(),
            "latency_ms": round((time.perf_counter() - came) * 1000, 1),
        }
        return {**told, "tokens": list(result.tokens)} if result.final else told

    def _factor(self) -> float | None:
        """Return seconds of work for each second of sound."""
        return round(self._busy / self.seconds, 4) if self._samples else None


def _timed(work: _Work, recognizer: Recognizer) -> tuple[list[Result], float]:
    began = time.perf_counter()
    return work(recognizer), time.perf_counter() - began


def _refused(error: ConfigError | DataError, field: str | None) -> RequestError:
    return RequestError(error.problem, field=field, found=error.found, wanted=error.wanted, fix=error.fix)
