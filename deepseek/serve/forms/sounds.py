"""Sounds as instances: WAV, or FLAC and OGG where soundfile is there, as a raw body or in base64.

How long it is stands in its header and is judged before samples are read. The rate is the sound's own: the pipeline
converts it. Not here: the formats (`deepseek.data.audio`).
"""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek.data.audio.io import AudioInfo, audio_info, read_audio
from deepseek.data.audio.resample import Resample
from deepseek.data.audio.wav import decode_samples, encode_samples, make_wav_header, read_wav_header
from deepseek.data.audio.whisper_features import WhisperFeatures
from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.errors import DataError, MissingExtraError, RequestError
from deepseek.serve.forms.checks import TOO_LARGE, WRONG_KIND, bytes_of, object_schema, refused
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes
from deepseek.serve.forms.images import B64_SCHEMA
from deepseek.serve.forms.stages import Road

_USUAL_RATE = 16_000
_MOST_RATE = 48_000
_PATH = Path("the sound")


class AudioTaker:
    """A sound through the pipeline's stages; channels are averaged, as the readers of training data do."""

    takes: Takes = "audio"

    def __init__(self, stages: Sequence[Stage | StageGroup], limits: FormLimits) -> None:
        self._road, self._limits = Road(stages), limits
        rates = [one.target_sr for one in stages if isinstance(one, Resample)]
        self._rate = rates[0] if rates else _USUAL_RATE
        longest = min((one.seconds for one in stages if isinstance(one, WhisperFeatures)), default=math.inf)
        self._second = int(self._rate * min(1.0, longest / 2))
        self.schema: Schema = {**object_schema({"b64": B64_SCHEMA}), "description": "WAV, FLAC or OGG, in base64"}

    def take(self, body: Any) -> Taken:
        """Return the features. Raises RequestError (400, 413, 415)."""
        data = bytes_of(body, "audio", self._limits.audio_bytes, "sound")
        waveform, rate = decoded_sound(data, self._limits.audio_seconds)
        return Taken(self._road.batch([{"waveform": waveform, "sample_rate": rate}], "audio"), {})

    def example(self) -> Any:
        """Return a tone of one second, or less where the model takes none so long, at the pipeline's rate."""
        return {"b64": base64.b64encode(_tone(self._rate, self._second)).decode("ascii")}

    def probes(self) -> Sequence[Any]:
        """Return tones of two lengths."""
        return [_tone(self._rate, self._second), _tone(self._rate, self._second * 2)]


def decoded_sound(data: bytes, most_seconds: float) -> tuple[Tensor, int]:
    """Return (waveform float32 (time,), sample rate in Hz) of a sound file's bytes. Raises RequestError."""
    plain = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    if not plain and data[:4] not in (b"fLaC", b"OggS"):
        found = f"bytes that begin with {data[:8].hex()}"
        raise RequestError(
            "'audio' is of no kind that is read", field="audio", status=WRONG_KIND, found=found, wanted="WAV, FLAC, OGG"
        )
    try:
        if plain:
            handle = io.BytesIO(data)
            header = read_wav_header(handle, _PATH)
            if header is not None:
                _check_length(AudioInfo(header.sample_rate, header.channels, header.frames), most_seconds)
                samples = decode_samples(data[header.start : header.start + header.frames * header.frame_bytes], header)
                return _mono(samples), header.sample_rate
        return _from_file(data, most_seconds)
    except MissingExtraError as error:
        raise RequestError(
            "sounds of this kind are not read here", field="audio", status=WRONG_KIND, wanted="WAV with plain samples"
        ) from error
    except DataError as error:
        raise refused(error, "audio", "'audio' is damaged, cut short or silent beyond use") from error


def _tone(rate: int, frames: int) -> bytes:
    wave = 0.3 * np.sin(2 * math.pi * 440 * np.arange(frames, dtype=np.float64) / rate)
    return make_wav_header(rate, 1, frames, "pcm16") + encode_samples(wave.astype(np.float32)[:, None], "pcm16")


def _from_file(data: bytes, most_seconds: float) -> tuple[Tensor, int]:
    """Read what needs a library, by way of a file that is gone afterwards."""
    with tempfile.NamedTemporaryFile(suffix=".sound") as file:
        file.write(data)
        file.flush()
        _check_length(audio_info(file.name), most_seconds)
        return read_audio(file.name, max_seconds=most_seconds)


def _check_length(info: AudioInfo, most_seconds: float) -> None:
    if not info.frames:
        raise RequestError("'audio' holds no samples", field="audio", found="0 samples", wanted="at least one")
    most = int(most_seconds * _MOST_RATE) * 2
    if info.seconds > most_seconds or info.frames * info.channels > most:
        found = f"{info.seconds:.1f} s, {info.frames * info.channels} samples"
        wanted = f"at most {most_seconds:g} s and {most} samples of all channels"
        raise RequestError("'audio' is too long", field="audio", status=TOO_LARGE, found=found, wanted=wanted)


def _mono(samples: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    """Return the mean of the channels of (frames, channels). Raises RequestError for samples that are no numbers."""
    if not np.isfinite(samples.sum(dtype=np.float64)):
        raise RequestError("'audio' holds samples that are NaN or infinite", field="audio", wanted="finite samples")
    return torch.from_numpy(samples[:, 0].copy() if samples.shape[1] == 1 else samples.mean(axis=1))
