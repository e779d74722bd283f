"""A pipeline's features of sound that comes in pieces: the frames returned, joined, are those of the whole recording.

Each stage is turned into one that holds back what it must still see. Stages that need the whole recording (mean and
variance over an utterance, trimming) have no such form. Not here: the stages (`deepseek.data.audio`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from deepseek.data.audio.dynamics import pre_emphasis
from deepseek.data.audio.features import Cepstra, LogMel, PreEmphasis
from deepseek.data.audio.global_norm import GlobalMeanVarianceNorm
from deepseek.data.audio.mel import MelSettings
from deepseek.data.audio.resample import Resample
from deepseek.data.audio.resampling import ResampleStream
from deepseek.data.audio.spectrogram import cepstra, log_mel
from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.errors import ConfigError


class Step(Protocol):
    """A stage as a stream."""

    def push(self, values: Tensor) -> Tensor:
        """Return what is ready."""
        ...

    def finish(self) -> Tensor | None:
        """Return the rest; None where nothing is ever held back."""
        ...


class FeatureStream:
    """Waveform pieces (time,) float32 at `sample_rate` Hz to frames (frames, features).

    Raises ConfigError for a stage that can't stream, and for settings that can't be at this rate.
    """

    def __init__(self, stages: Sequence[Stage | StageGroup], sample_rate: int) -> None:
        self._steps: list[Step] = []
        rate = sample_rate
        for stage in flat(stages):
            self._steps.append(_step(stage, rate))
            rate = stage.target_sr if isinstance(stage, Resample) else rate

    def push(self, waveform: Tensor) -> Tensor:
        """Return the frames that are complete now, maybe none. Raises DataError for what is no finite sound."""
        values = waveform
        for step in self._steps:
            values = step.push(values)
        return values

    def finish(self) -> Tensor:
        """Return the frames that waited for more sound. Nothing may be pushed after."""
        rest: Tensor | None = None
        for step in self._steps:
            rest = _joined(None if rest is None else step.push(rest), step.finish())
        return torch.zeros(0, 0) if rest is None else rest


def flat(stages: Sequence[Stage | StageGroup]) -> list[Stage]:
    """Return the stages of groups in their place."""
    return [one for stage in stages for one in (stage.stages() if isinstance(stage, StageGroup) else (stage,))]


def check_stages(stages: Sequence[Stage | StageGroup]) -> None:
    """Raise ConfigError, naming the stage, where one can't stream."""
    kinds = [type(stage) for stage in flat(stages)]
    if LogMel not in kinds:
        raise ConfigError("the pipeline makes no spectra of sound", wanted="LogMel or FeatureExtract")
    for stage in flat(stages):
        if not isinstance(stage, Resample | PreEmphasis | LogMel | Cepstra | GlobalMeanVarianceNorm):
            raise ConfigError(
                f"the stage {type(stage).__name__} needs the whole recording",
                wanted="Resample, PreEmphasis, LogMel, Cepstra, GlobalMeanVarianceNorm",
                fix="train a streaming model without it",
            )
        if isinstance(stage, Cepstra) and stage.type == "mfcc" and stage.style == "librosa":
            raise ConfigError(
                "Cepstra in librosa's style needs the loudest of the whole recording", fix="use the style 'kaldi'"
            )


def _step(stage: Stage, rate: int) -> Step:
    if isinstance(stage, Resample):
        return ResampleStream(rate, stage.target_sr)
    if isinstance(stage, PreEmphasis):
        return _PreEmphasisStep(stage.coefficient)
    if isinstance(stage, LogMel):
        settings = MelSettings(
            rate, stage.style, stage.n_mels, stage.window_ms, stage.hop_ms, stage.n_fft, stage.f_min, stage.f_max
        )
        return LogMelStream(settings)
    if isinstance(stage, GlobalMeanVarianceNorm):
        return _FrameStep(lambda frames: stage.scaled(frames) if len(frames) else frames)
    if isinstance(stage, Cepstra):
        if stage.type == "log_mel":
            return _FrameStep(lambda frames: frames)
        count, style, lifter = stage.n_mfcc, stage.style, stage.lifter
        return _FrameStep(lambda frames: cepstra(frames, count, style, lifter) if len(frames) else frames[:, :count])
    raise ConfigError(f"the stage {type(stage).__name__} can't stream", wanted="see check_stages")


class LogMelStream:
    """`log_mel` of a waveform that comes in pieces.

    A frame is computed from a piece of the waveform around it, at whose edges no other frame is taken: in Kaldi's style
    a frame sees its own window alone, in librosa's half an FFT to each side.
    """

    def __init__(self, settings: MelSettings) -> None:
        self._settings = settings
        self._centred = settings.style == "librosa"
        self._context = -(-(settings.fft_size // 2) // settings.hop) if self._centred else 0
        self._held = torch.zeros(0)
        self._first = 0  # the frame at whose hop `_held` begins
        self._next = 0  # the first frame that was not returned
        self._samples = 0

    def push(self, waveform: Tensor) -> Tensor:
        """Return (frames, n_mels) of the frames that are complete. Raises DataError."""
        self._held = torch.cat([self._held, waveform])
        self._samples += len(waveform)
        settings = self._settings
        span = settings.fft_size // 2 if self._centred else settings.window
        return self._frames(max(self._next, 1 + (self._samples - span) // settings.hop))

    def finish(self) -> Tensor:
        """Return the frames at the end, where zeros stand for what did not come."""
        if not self._centred or not self._samples:
            return self._empty()
        return self._frames(1 + self._samples // self._settings.hop)

    def _frames(self, end: int) -> Tensor:
        """Return the frames up to `end`, and drop the samples that no later frame sees."""
        if end <= self._next:
            return self._empty()
        found = log_mel(self._held, self._settings)[self._next - self._first : end - self._first]
        self._next = end
        first = max(0, end - self._context)
        self._held = self._held[(first - self._first) * self._settings.hop :]
        self._first = first
        return found

    def _empty(self) -> Tensor:
        return torch.zeros(0, self._settings.n_mels)


class _PreEmphasisStep:
    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient
        self._last: Tensor | None = None

    def push(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        before, self._last = self._last, values[-1:]
        if before is None:
            return pre_emphasis(values, self._coefficient)
        return pre_emphasis(torch.cat([before, values]), self._coefficient)[1:]

    def finish(self) -> Tensor | None:
        return None


class _FrameStep:
    """A stage that treats each frame by itself."""

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        self._apply = apply

    def push(self, values: Tensor) -> Tensor:
        return self._apply(values)

    def finish(self) -> Tensor | None:
        return None


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    parts = [part for part in (one, other) if part is not None and len(part)]
    return torch.cat(parts) if parts else None
