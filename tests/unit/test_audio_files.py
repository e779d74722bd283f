"""Sound files: what is written is read back, streams equal the whole, and no header is believed."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.audio import audio_info, read_audio, stream_audio, write_audio
from deepseek.data.audio.wav import WavHeader, decode_samples, encode_samples
from deepseek.errors import ConfigError, DataError, MissingExtraError, StorageError

soundfile = pytest.importorskip("soundfile")

ENCODINGS = [
    ("a.wav", "pcm16"),
    ("a.wav", "pcm24"),
    ("a.wav", "float32"),
    ("a.flac", "pcm16"),
    ("a.flac", "pcm24"),
]
SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"]
NO_SOUND = [
    b"",
    b"RIFF",
    b"RIFF\0\0\0\0WAVE",
    b"ID3\4" + bytes(100),
    b"{'a': 1}",
    b"\x89PNG\r\n\x1a\n",
    b"fLaC" + bytes(60),
    b"OggS" + bytes(60),
    b"RF64\xff\xff\xff\xffWAVE" + bytes(40),
]


def tone(seconds: float = 0.25, rate: int = 8000, channels: int = 1) -> torch.Tensor:
    times = torch.arange(int(seconds * rate)) / rate
    return torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * (place + 1) * times) for place in range(channels)])


def wav(path: Path, code: int = 1, bits: int = 16, data: bytes = b"\0\0" * 100, **lies: int) -> Path:
    """Write a mono WAV of 8 kHz whose header may lie."""
    rate, channels, length = lies.get("rate", 8000), lies.get("channels", 1), lies.get("length", len(data))
    block = lies.get("block", channels * bits // 8)
    form = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)
    head = b"WAVE" + b"fmt " + struct.pack("<I", lies.get("form_length", 16)) + form
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 4 + 24 + 8 + len(data)) + head + b"data" + struct.pack("<I", length) + data
    )
    return path


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.wav", "pcm16"), ("a.wav", "pcm24"), ("a.wav", "float32"), ("a.flac", "pcm16"), ("a.flac", "pcm24")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, encoding: str, channels: int) -> None:
    sound, path = tone(channels=channels), tmp_path / "sub" / name
    write_audio(path, sound, 8000, encoding=encoding)
    found, rate = read_audio(path, mono=False)
    step = {"pcm16": 2**-16, "pcm24": 2**-24, "float32": 0.0}[encoding]
    assert rate == 8000 and found.dtype == torch.float32
    torch.testing.assert_close(found, sound, atol=step * 1.01, rtol=0)
    torch.testing.assert_close(read_audio(path)[0], found.mean(0))
    theirs, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(found.T, theirs)
    again = tmp_path / name
    write_audio(again, found, 8000, encoding=encoding)
    assert torch.equal(read_audio(again, mono=False)[0], found)


def test_ogg_is_read_and_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.ogg", tone()[0], 8000)
    found, rate = read_audio(tmp_path / "a.ogg")
    assert rate == 8000 and (found - tone()[0]).abs().max() < 0.05


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"]
)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_every_kind_of_wav_equals_what_soundfile_reads(tmp_path: Path, subtype: str, kind: str) -> None:
    if kind == "WAVEX" and subtype == "IMA_ADPCM":
        pytest.skip("ADPCM has no extensible form")
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(channels=2).T.numpy(), 8000, subtype=subtype, format=kind)
    theirs, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(read_audio(path, mono=False)[0].T, theirs)


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), st.sampled_from(["pcm16", "pcm24"]))
def test_whole_numbers_survive(values: list[int], encoding: str) -> None:
    samples = (np.array(values, dtype=np.float32) / 2**15)[:, None]
    bits = {"pcm16": 16, "pcm24": 24}[encoding]
    header = WavHeader(8000, 1, len(values), False, bits, 44)
    np.testing.assert_array_equal(decode_samples(encode_samples(samples, encoding), header), samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("seconds", [0.03, 0.1, 7.0])
def test_a_stream_equals_the_whole(tmp_path: Path, name: str, seconds: float) -> None:
    write_audio(tmp_path / name, tone(channels=2), 8000)
    for mono in (False, True):
        blocks = list(stream_audio(tmp_path / name, seconds, mono=mono))
        assert {rate for _, rate in blocks} == {8000}
        torch.testing.assert_close(
            torch.cat([block for block, _ in blocks], -1), read_audio(tmp_path / name, mono=mono)[0]
        )
    assert audio_info(tmp_path / name).seconds == 0.25


def test_a_stream_keeps_memory_bounded(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(200.0), 8000)
    tracemalloc.start()
    for _ in stream_audio(tmp_path / "a.wav", 0.5):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # the sound is 6 MiB of float32


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_audio(path, tone(1.0) + 0.1 * torch.rand(1, 8000), 8000)
    whole = path.read_bytes()
    for share in (0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=name):
            read_audio(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 2**32 - 1}, "shorter than its header says"),
        ({"length": 201}, "shorter than its header says"),
        ({"data": b"", "length": 0}, "no samples"),
        ({"data": b"\0" * 201}, "last frame is cut"),
        ({"rate": 0}, "out of range"),
        ({"rate": 2**30}, "out of range"),
        ({"channels": 0, "block": 2}, "out of range"),
        ({"channels": 60000, "block": 2}, "out of range"),
        ({"block": 7}, "wrong size"),
        ({"form_length": 2**31}, "longer than the file"),
        ({"form_length": 4}, "cut short"),
        ({"code": 0x55}, "decode"),
        ({"code": 3, "bits": 32, "data": struct.pack("<4f", 0, float("nan"), 0, 0)}, "NaN or infinite"),
        ({"code": 3, "bits": 64, "data": struct.pack("<2d", 0, float("inf"))}, "NaN or infinite"),
    ],
)
def test_headers_that_lie(tmp_path: Path, settings: dict, message: str) -> None:
    path = wav(tmp_path / "a.wav", **settings)
    with pytest.raises(DataError, match=message) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", NO_SOUND)
def test_what_is_no_sound(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.wav"):
        read_audio(path)


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_of_the_header_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = wav(tmp_path_factory.getbasetemp() / "byte.wav")
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    try:
        sound, rate = read_audio(path)
    except DataError:
        return
    assert 0 < sound.numel() <= 200 and rate > 0


def test_lengths_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(80_000, dtype=np.int16), 8000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the total number of samples: 36 bits from the middle of this byte on
    data[22:26] = b"\xff\xff\xff\xf0"
    path.write_bytes(data)
    with pytest.raises(DataError, match="longer than a sound may be"):
        read_audio(path)
    write_audio(tmp_path / "a.wav", tone(2.0), 8000)
    with pytest.raises(DataError, match="stream_audio"):
        read_audio(tmp_path / "a.wav", max_seconds=1.0)


def test_missing_files_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(DataError, match="can't be read"):
        read_audio(tmp_path)
    write_audio(tmp_path / "a.flac", tone(), 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    write_audio(tmp_path / "a.wav", tone(), 8000)
    assert read_audio(tmp_path / "a.wav")[0].shape == (2000,)
    with pytest.raises(MissingExtraError, match=r"\[audio\]"):
        read_audio(tmp_path / "a.flac")
    with pytest.raises(MissingExtraError, match=r"\[audio\]"):
        write_audio(tmp_path / "b.flac", tone(), 8000)


def test_what_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path, sound, options, error in [
        ("a.mp3", tone(), {}, ConfigError),
        ("a.wav", tone(), {"encoding": "pcm8"}, ConfigError),
        ("a.flac", tone(), {"encoding": "float32"}, ConfigError),
        ("a.wav", torch.full((9,), torch.nan), {}, DataError),
        ("a.wav", torch.zeros(0), {}, DataError),
        ("a.wav", torch.zeros(1, 1, 9), {}, DataError),
    ]:
        with pytest.raises(error):
            write_audio(tmp_path / path, sound, 8000, **options)
    with pytest.raises(ConfigError):
        write_audio(tmp_path / "a.wav", tone(), 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_audio(tmp_path / "file" / "a.wav", tone(), 8000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    write_audio(tmp_path / "a.wav", 4 * tone(), 8000)
    assert "beyond full scale" in caplog.text
    assert read_audio(tmp_path / "a.wav")[0].abs().max() <= 1
    with pytest.raises(ConfigError):
        next(stream_audio(tmp_path / "a.wav", 0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, tone(), 8000)
    before = path.read_bytes()
    monkeypatch.setattr(
        "deepseek.data.audio.io._write_wav", lambda target, *rest: Path("/dev/full").write_bytes(b"x" * 99)
    )
    with pytest.raises(StorageError, match="free some space"):
        write_audio(path, tone(1.0), 8000)
    assert path.read_bytes() == before
