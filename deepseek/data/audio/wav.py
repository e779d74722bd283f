"""WAV files with plain numbers inside: the header, checked against the file's size, and samples to and from bytes.

PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 bits, also in the extensible form. Not here: compressed WAV, and
other containers (`io`).
Source: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0", 1991; `WAVEFORMATEXTENSIBLE`,
https://learn.microsoft.com/windows/win32/api/mmreg/ns-mmreg-waveformatextensible
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from deepseek.data.audio.checks import MAX_SAMPLE_RATE
from deepseek.errors import DataError

WavEncoding = Literal["pcm16", "pcm24", "float32"]
MAX_CHANNELS = 64
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_WIDTHS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_MAX_CHUNKS = 1000
_MAX_DATA = (1 << 32) - 1 - 64


@dataclass(frozen=True)
class WavHeader:
    """Where a WAV file's samples are and what they look like; `frames` is of all channels together."""

    sample_rate: int
    channels: int
    frames: int
    floats: bool
    bits: int
    start: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.bits // 8


def read_wav_header(handle: IO[bytes], path: Path) -> WavHeader | None:
    """Return the header, None where samples are compressed. Raises DataError where it contradicts itself or the file's
    size."""
    size = handle.seek(0, 2)
    handle.seek(12)
    form: tuple[int, int, int, int] | None = None
    for _ in range(_MAX_CHUNKS):
        head = handle.read(8)
        if len(head) < 8:
            raise _broken(path, "it ends before its samples", f"{size} bytes", "a 'data' chunk")
        name, length = head[:4], int.from_bytes(head[4:], "little")
        start = handle.tell()
        if name == b"data":
            if form is None:
                raise _broken(path, "its samples come before their format", "'data' first", "'fmt ' first")
            return _header(path, form, start, length, size)
        if length > size - start:
            raise _broken(path, f"its chunk {name!r} is longer than the file", f"{length} bytes", f"{size - start}")
        if name == b"fmt ":
            form = _format(path, handle.read(min(length, 40)))
        handle.seek(start + length + length % 2)
    raise _broken(path, "it has too many chunks", f"more than {_MAX_CHUNKS}", "a 'data' chunk")


def decode_samples(data: bytes, header: WavHeader) -> NDArray[np.float32]:
    """Return the samples of whole frames, (frames, channels), full scale 1."""
    if header.floats:
        numbers: NDArray[np.float32] = np.frombuffer(data, dtype=f"<f{header.bits // 8}").astype(np.float32)
    elif header.bits == 8:
        numbers = (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128) / np.float32(128)
    elif header.bits == 24:
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        numbers = wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    else:
        numbers = np.frombuffer(data, dtype=f"<i{header.bits // 8}").astype(np.float32) / np.float32(
            2 ** (header.bits - 1)
        )
    return numbers.reshape(-1, header.channels)


def encode_samples(samples: NDArray[np.float32], encoding: WavEncoding) -> bytes:
    """Return the bytes of samples (frames, channels); what is beyond full scale is cut to it unless floats are kept."""
    if encoding == "float32":
        return samples.astype("<f4").tobytes()
    top = 2**15 if encoding == "pcm16" else 2**23
    whole = np.clip(np.rint(samples.astype(np.float64) * top), -top, top - 1)
    if encoding == "pcm16":
        return whole.astype("<i2").tobytes()
    return np.ascontiguousarray(whole.astype("<i4")[..., None].view(np.uint8)[..., :3]).tobytes()


def make_wav_header(sample_rate: int, channels: int, frames: int, encoding: WavEncoding) -> bytes:
    """Return the header of a file of so many frames. Raises DataError where that is more than WAV's 4 GiB."""
    width = {"pcm16": 2, "pcm24": 3, "float32": 4}[encoding]
    length = frames * channels * width
    if length > _MAX_DATA:
        raise DataError("a WAV file ends at 4 GiB", found=f"{length} bytes", fix="write FLAC, or several files")
    block, code = channels * width, _FLOAT if encoding == "float32" else _PCM
    form = struct.pack("<HHIIHH", code, channels, sample_rate, sample_rate * block, block, 8 * width)
    if encoding == "float32":  # other than PCM needs the size of an extension, and the number of frames
        form += struct.pack("<H", 0)
        form = _chunk(b"fmt ", form) + _chunk(b"fact", struct.pack("<I", frames))
    else:
        form = _chunk(b"fmt ", form)
    return (
        b"RIFF"
        + struct.pack("<I", 4 + len(form) + 8 + length + length % 2)
        + b"WAVE"
        + form
        + b"data"
        + struct.pack("<I", length)
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _format(path: Path, data: bytes) -> tuple[int, int, int, int]:
    """Return (code, channels, sample rate, bits)."""
    if len(data) < 16:
        raise _broken(path, "its format is cut short", f"{len(data)} bytes", "at least 16")
    code, channels, rate, _, block, bits = struct.unpack("<HHIIHH", data[:16])
    if code == _EXTENSIBLE and len(data) >= 40 and data[26:40] == _GUID_TAIL:
        code = int.from_bytes(data[24:26], "little")
    if not 1 <= channels <= MAX_CHANNELS or not 1 <= rate <= MAX_SAMPLE_RATE:
        raise _broken(
            path,
            "its format is out of range",
            f"{channels} channels, {rate} Hz",
            f"1 to {MAX_CHANNELS} channels, 1 to {MAX_SAMPLE_RATE} Hz",
        )
    if (code, bits) in _WIDTHS and block != channels * bits // 8:
        raise _broken(path, "its frames have a wrong size", f"{block} bytes", f"{channels * bits // 8}")
    return code, channels, rate, bits


def _header(path: Path, form: tuple[int, int, int, int], start: int, length: int, size: int) -> WavHeader | None:
    code, channels, rate, bits = form
    if length > size - start:
        raise _broken(path, "it is shorter than its header says", f"{size - start} bytes of samples", f"{length}")
    if (code, bits) not in _WIDTHS:
        return None
    block = channels * bits // 8
    if length % block:
        raise _broken(path, "its last frame is cut", f"{length} bytes of samples", f"a multiple of {block}")
    return WavHeader(rate, channels, length // block, code == _FLOAT, bits, start)


def _broken(path: Path, problem: str, found: str, wanted: str) -> DataError:
    return DataError(
        f"{path} is no sound WAV file: {problem}",
        found=found,
        wanted=wanted,
        fix="get the file again, or repair its header: ffmpeg -i broken.wav repaired.wav",
    )
