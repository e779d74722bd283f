"""Sound files to waveforms and back: WAV, FLAC and OGG, whole or as a stream in bounded memory.

A header is not believed: how long a sound may be is checked before anything is allocated, samples are read in blocks,
and their number has to be what the header says. Plain WAV needs no other package; FLAC, OGG and compressed WAV are
read by soundfile (the extra [audio]).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.audio.checks import MAX_SAMPLE_RATE, check_sample_rate, check_waveform
from deepseek.data.audio.wav import (
    MAX_CHANNELS,
    WavEncoding,
    WavHeader,
    decode_samples,
    encode_samples,
    make_wav_header,
    read_wav_header,
)
from deepseek.errors import ConfigError, DataError
from deepseek.files import atomic_path
from deepseek.lazy import require

_BLOCK = 1 << 19  # samples of all channels that are read at once
_MOST = 1 << 30  # samples of all channels that a whole sound may have, 4 GiB: FLAC packs silence to nearly nothing
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file's header says, checked as far as it can be."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """How long the sound is."""
        return self.frames / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Return rate, channels and length of a sound file without reading its samples. Raises as `read_audio` does."""
    with closing(_Source(Path(path))) as source:
        return source.info


def read_audio(path: str | os.PathLike[str], *, max_seconds: float = 3600.0, mono: bool = True) -> tuple[Tensor, int]:
    """Return (waveform, sample rate in Hz): float32 (time,), channels averaged, or (channels, time) without `mono`.

    Raises DataError naming the file where it is missing, no WAV, FLAC or OGG, cut short, of another length than its
    header says, without samples, longer than `max_seconds`, or holds NaN; MissingExtraError where it needs soundfile.
    """
    with closing(_Source(Path(path))) as source:
        source.refuse_longer_than(max_seconds)
        blocks = [_as_tensor(block, mono) for block in source.blocks(max(1, _BLOCK // source.info.channels))]
        waveform = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)
        return waveform, source.info.sample_rate


def stream_audio(
    path: str | os.PathLike[str], block_seconds: float = 1.0, *, mono: bool = True
) -> Iterator[tuple[Tensor, int]]:
    """Yield (waveform, sample rate) of block after block, the last one maybe shorter; memory is that of one block.

    Raises ConfigError for a block that is not from one sample to an hour, and what `read_audio` raises, when the
    reading gets there; how long the whole is does not matter.
    """
    if not 0 < block_seconds <= 3600:
        raise ConfigError("block_seconds is out of range", found=block_seconds, wanted="more than 0, up to 3600")
    with closing(_Source(Path(path))) as source:
        for block in source.blocks(max(1, round(block_seconds * source.info.sample_rate))):
            yield _as_tensor(block, mono), source.info.sample_rate


def write_audio(
    path: str | os.PathLike[str], waveform: Tensor, sample_rate: int, *, encoding: WavEncoding = "pcm16"
) -> None:
    """Write a waveform (time,) or (channels, time), full scale 1, atomically; the file's ending chooses the format.

    `.wav` needs no other package; `.flac` (pcm16, pcm24) and `.ogg` (Vorbis, lossy: `encoding` is not used) need
    soundfile. Samples beyond full scale are cut to it, with a warning in the log. Raises DataError for a waveform that
    is empty or not finite, ConfigError for another ending or encoding, MissingExtraError, StorageError.
    """
    target, ending = Path(path), Path(path).suffix.lower()
    if ending not in (".wav", ".flac", ".ogg"):
        raise ConfigError("unknown ending of a sound file", found=target.name, wanted=".wav, .flac or .ogg")
    if encoding not in get_args(WavEncoding) or (ending == ".flac" and encoding == "float32"):
        raise ConfigError(f"{ending} files have no such encoding", found=repr(encoding), wanted="'pcm16' or 'pcm24'")
    check_sample_rate(sample_rate)
    check_waveform(waveform)
    if waveform.ndim > 2 or (waveform.ndim == 2 and waveform.shape[0] > MAX_CHANNELS):
        raise DataError(
            "this is no waveform", found=f"shape {tuple(waveform.shape)}", wanted="(time,), (channels, time)"
        )
    samples: NDArray[np.float32] = waveform.detach().cpu().float().reshape(-1, waveform.shape[-1]).T.numpy()
    beyond = int((np.abs(samples) > 1).sum())
    if beyond and (ending != ".wav" or encoding != "float32"):
        _log.warning("%s: %d samples are beyond full scale and were cut to it", target, beyond)
    soundfile = None if ending == ".wav" else require("soundfile", "audio")
    with atomic_path(target) as temporary:
        if soundfile is None:
            _write_wav(temporary, samples, sample_rate, encoding)
        else:
            subtype = {"pcm16": "PCM_16", "pcm24": "PCM_24"}.get(encoding) if ending == ".flac" else "VORBIS"
            kind = ending[1:].upper()
            soundfile.write(temporary, np.clip(samples, -1, 1), sample_rate, format=kind, subtype=subtype)


def _write_wav(path: Path, samples: NDArray[np.float32], sample_rate: int, encoding: WavEncoding) -> None:
    frames, channels = samples.shape
    with open(path, "wb") as handle:
        written = handle.write(make_wav_header(sample_rate, channels, frames, encoding))
        for start in range(0, frames, _BLOCK):
            written += handle.write(encode_samples(samples[start : start + _BLOCK], encoding))
        handle.write(b"\0" * (written % 2))


def _as_tensor(block: NDArray[np.float32], mono: bool) -> Tensor:
    if mono:
        return torch.from_numpy(block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1))
    return torch.from_numpy(np.ascontiguousarray(block.T))


class _Source:
    """An open sound file, its header checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle: IO[bytes] = open(path, "rb")
        except OSError as error:
            raise DataError(f"{path} can't be read", found=error.strerror) from error
        try:
            self._wav: WavHeader | None = None
            self._sound: Any = None
            self.info = self._open()
        except BaseException:
            self._handle.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._sound is not None:
            self._sound.close()
        self._handle.close()

    def refuse_longer_than(self, seconds: float) -> None:
        """Raise DataError where the header promises more, or more samples than fit in memory."""
        samples = self.info.frames * self.info.channels
        if self.info.seconds > seconds or samples > _MOST:
            raise DataError(
                f"{self.path} is longer than a sound may be here",
                found=f"{self.info.seconds:.0f} s and {samples} samples by its header",
                wanted=f"up to {seconds:g} s and {_MOST} samples",
                fix="read it with stream_audio, or raise max_seconds",
            )

    def blocks(self, frames: int) -> Iterator[NDArray[np.float32]]:
        """Yield (up to `frames`, channels) until the file ends. Raises DataError for what it should not hold."""
        done = 0
        while done < self.info.frames:
            block = self._read(min(frames, self.info.frames - done))
            if len(block) == 0:
                raise DataError(
                    f"{self.path} is cut short", found=f"{done} samples", wanted=f"{self.info.frames}, by its header"
                )
            # one sum meets every NaN and infinity
            if not np.isfinite(block.sum(dtype=np.float64)):
                raise DataError(f"{self.path} holds samples that are NaN or infinite", found=f"after sample {done}")
            done += len(block)
            yield block

    def _open(self) -> AudioInfo:
        start = self._handle.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            self._wav = read_wav_header(self._handle, self.path)
        elif start[:4] not in (b"fLaC", b"OggS", b"RF64"):
            found = "an empty file" if not start else f"it begins with {start[:4]!r}"
            raise DataError(f"{self.path} is no sound file", found=found, wanted="WAV, FLAC or OGG")
        if self._wav is not None:
            self._handle.seek(self._wav.start)
            info = AudioInfo(self._wav.sample_rate, self._wav.channels, self._wav.frames)
        else:
            info = self._open_soundfile()
        if info.frames == 0:
            raise DataError(f"{self.path} holds no samples", found="0 samples", fix="leave the file out")
        return info

    def _open_soundfile(self) -> AudioInfo:
        soundfile = require("soundfile", "audio")
        self._handle.seek(0)
        try:
            self._sound = soundfile.SoundFile(self._handle)
        except (soundfile.SoundFileError, TypeError) as error:
            raise DataError(f"{self.path} can't be decoded", found=str(error), wanted="WAV, FLAC or OGG") from error
        rate, channels, frames = self._sound.samplerate, self._sound.channels, self._sound.frames
        if not 1 <= rate <= MAX_SAMPLE_RATE or not 1 <= channels <= MAX_CHANNELS or not 0 <= frames < 1 << 48:
            raise DataError(
                f"{self.path} has a header out of range", found=f"{rate} Hz, {channels} channels, {frames} samples"
            )
        return AudioInfo(rate, channels, frames)

    def _read(self, frames: int) -> NDArray[np.float32]:
        if self._wav is not None:
            data = self._handle.read(frames * self._wav.frame_bytes)
            return decode_samples(data[: len(data) - len(data) % self._wav.frame_bytes], self._wav)
        soundfile = require("soundfile", "audio")
        try:
            return cast(NDArray[np.float32], self._sound.read(frames, dtype="float32", always_2d=True))
        except soundfile.SoundFileError as error:
            raise DataError(f"{self.path} can't be decoded to its end", found=str(error)) from error
