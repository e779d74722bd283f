"""Endpoints: bursts planted in noise are found to the frame, whatever the cuts of the stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.audio import Endpointer, EndpointSettings, TrimSilence, detect_speech, pink_noise
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError

METHODS = ["energy", "statistical"]


def burst(rng: np.random.Generator, length: int, rate: int) -> np.ndarray:
    """A voiced sound of power 1: harmonics of a low tone, loudness going up and down like syllables."""
    times, pitch = np.arange(length) / rate, rng.uniform(100, 220)
    harmonics = [
        np.sin(2 * np.pi * pitch * h * times + rng.uniform(0, 6)) / h**0.7 for h in range(1, int(rate / 2 / pitch))
    ]
    fade = np.minimum(1, np.minimum(times, times[::-1]) / 0.01)
    sound = sum(harmonics) * fade * (1 + 0.4 * np.sin(2 * np.pi * 4 * times))
    return sound / np.sqrt(np.mean(sound**2))


def scene(seed: int, rate: int, pink: bool) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Noise with bursts 10 dB above it, and where they are."""
    rng, length = np.random.default_rng(seed), 5 * rate
    sound = 0.02 * (pink_noise(length, rng).numpy() if pink else rng.standard_normal(length))
    spans, at = [], int(rate * rng.uniform(0.5, 0.9))
    while at < length - 2 * rate:
        end = at + int(rate * rng.uniform(0.2, 1.2))
        sound[at:end] += 0.02 * 10**0.5 * burst(rng, end - at, rate)
        spans.append((at, end))
        at = end + int(rate * rng.uniform(0.4, 1.0))
    return torch.tensor(sound, dtype=torch.float32), spans


def events_of(endpointer: Endpointer, pieces: list[torch.Tensor]) -> list[tuple[str, int]]:
    found = [event for piece in pieces for event in endpointer.push(piece)] + endpointer.finish()
    return [(event.kind, event.sample) for event in found]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("pink", [False, True])
def test_bursts_at_10_db_are_found_within_two_frames(method: str, rate: int, pink: bool) -> None:
    for seed in range(2):
        sound, spans = scene(seed, rate, pink)
        whole = [(part.start, part.end) for part in detect_speech(sound, rate, EndpointSettings(method))]
        events = events_of(Endpointer(rate, EndpointSettings(method)), [sound])
        assert [kind for kind, _ in events] == ["start", "end"] * len(spans)
        places = np.array([place for _, place in events]).reshape(-1, 2)
        for found in (np.array(whole), places):
            assert np.abs(found - np.array(spans)).max() <= 2 * rate / 100


@pytest.fixture(scope="module")
def short_scene() -> torch.Tensor:
    return scene(1, 8000, False)[0][:20_000]


@pytest.mark.parametrize("method", METHODS)
def test_the_cuts_of_a_stream_do_not_matter(method: str, short_scene: torch.Tensor) -> None:
    whole = events_of(Endpointer(8000, EndpointSettings(method)), [short_scene])
    assert len(whole) >= 2

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.integers(0, 20_000), max_size=30))
    def check(cuts: list[int]) -> None:
        places = [0, *sorted(cuts), 20_000]
        pieces = [short_scene[a:b] for a, b in zip(places, places[1:], strict=False)]
        assert events_of(Endpointer(8000, EndpointSettings(method)), pieces) == whole

    check()
    tiny = list(short_scene.split(7))
    assert events_of(Endpointer(8000, EndpointSettings(method)), tiny) == whole


def test_events_come_while_the_stream_runs() -> None:
    sound, spans = scene(0, 8000, False)
    endpointer = Endpointer(8000)
    for start in range(0, len(sound), 80):
        for event in endpointer.push(sound[start : start + 80]):
            delay = start + 80 - event.sample
            assert delay <= (1000 if event.kind == "start" else 2200)  # 50 ms of speech, 200 ms of pause, and frames


@pytest.mark.parametrize("method", METHODS)
def test_noise_alone_and_silence_hold_no_speech(method: str) -> None:
    rng = np.random.default_rng(3)
    for sound in (0.05 * rng.standard_normal(40_000), pink_noise(40_000, rng).numpy() * 0.01, np.zeros(16_000)):
        waveform = torch.tensor(sound, dtype=torch.float32)
        assert detect_speech(waveform, 8000, EndpointSettings(method)) == []
        assert events_of(Endpointer(8000, EndpointSettings(method)), [waveform]) == []


@pytest.mark.parametrize("method", METHODS)
def test_speech_that_goes_on_at_the_end_ends_there(method: str) -> None:
    rng = np.random.default_rng(0)
    sound = 0.01 * rng.standard_normal(16_013)
    sound[8000:] += 0.2 * burst(rng, 10_000, 8000)[:8013]
    for length in (16_013, 12_345):
        (found,) = detect_speech(torch.tensor(sound[:length], dtype=torch.float32), 8000, EndpointSettings(method))
        assert abs(found.start - 8000) <= 160 and found.end == length


def test_noise_that_grows_is_learned() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat([0.005, 0.007, 0.01, 0.014], 16_000)  # 3 dB every 2 s
    sound = torch.tensor(level * rng.standard_normal(64_000), dtype=torch.float32)
    assert events_of(Endpointer(8000), [sound]) == []


def test_trimming_keeps_speech_and_a_margin() -> None:
    rng = np.random.default_rng(0)
    sound = 0.01 * rng.standard_normal(24_000)
    sound[8000:12_000] += 0.2 * burst(rng, 4000, 8000)
    sound[14_000:16_000] += 0.2 * burst(rng, 2000, 8000)
    waveform = torch.tensor(sound, dtype=torch.float32)
    for method in METHODS:
        done = Pipeline([TrimSilence(method=method, margin_ms=100.0)])({"waveform": waveform, "sample_rate": 8000})
        assert abs(len(done["waveform"]) - (8000 + 2 * 800)) <= 320
        both = Pipeline([TrimSilence(method=method)])({"waveform": waveform.expand(2, -1), "sample_rate": 8000})
        assert both["waveform"].shape[0] == 2 and both["waveform"].shape[1] < 9200
    quiet = {"waveform": waveform[:4000], "sample_rate": 8000}
    assert len(Pipeline([TrimSilence()])(quiet)["waveform"]) == 4000


def test_short_and_bad_input() -> None:
    assert detect_speech(torch.zeros(3), 8000) == []
    assert Endpointer(8000).finish() == []
    assert Endpointer(8000).push(torch.zeros(0)) == []
    for sound in (torch.zeros(0), torch.zeros(2, 100), torch.tensor([torch.nan] * 400)):
        with pytest.raises(DataError):
            detect_speech(sound, 8000)
    for make in (
        lambda: EndpointSettings("neural"),
        lambda: EndpointSettings(hop_ms=0.0),
        lambda: EndpointSettings(hop_ms=30.0),
        lambda: EndpointSettings(min_pause_ms=-1.0),
        lambda: EndpointSettings(start=1.0, stop=2.0),
        lambda: Endpointer(500),
        lambda: Endpointer(0),
        lambda: TrimSilence(margin_ms=-1.0),
        lambda: TrimSilence(method="neural"),
    ):
        with pytest.raises(ConfigError):
            make()
