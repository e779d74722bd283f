"""Resampling: tones keep their place and level, what is too high is gone, equal to soxr; streams equal the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from deepseek.data.audio import Resample, ResampleStream, SpeedPerturb, change_speed, resample_audio
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError

PAIRS = [(8000, 16000), (16000, 8000), (44100, 16000), (16000, 22050), (48000, 16000), (16000, 16001), (11025, 8000)]


def sweep(rate: int, seconds: float = 0.4, top: float = 3000.0) -> torch.Tensor:
    """A rising tone that fades in and out."""
    times = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    fade = torch.sin(torch.pi * times / seconds) ** 2
    return fade * torch.sin(2 * torch.pi * (100 + (top - 100) / (2 * seconds) * times) * times)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_sweep_is_what_it_would_have_been_at_the_new_rate(old: int, new: int) -> None:
    found = resample_audio(sweep(old), old, new)
    assert found.shape[0] == -(-len(sweep(old)) * new // old)
    count = min(len(found), len(sweep(new)))
    assert (found - torch.nn.functional.pad(sweep(new), (0, len(found) - count)))[:count].abs().max() < 2e-5


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_equal_to_soxr_and_scipy_in_the_band_they_all_pass(old: int, new: int) -> None:
    soxr = pytest.importorskip("soxr")
    sound = sweep(old).float()
    found = resample_audio(sound, old, new).numpy()
    theirs = soxr.resample(sound.numpy(), old, new, quality="VHQ")
    count = min(len(found), len(theirs))
    np.testing.assert_allclose(found[:count], theirs[:count], atol=2e-4)
    if max(old, new) // np.gcd(old, new) < 1000:
        theirs = resample_poly(sound.numpy(), new, old, window=("kaiser", 12.0))[: len(found)]
        np.testing.assert_allclose(found, theirs, atol=0.05)


def test_what_is_above_half_the_new_rate_is_gone() -> None:
    times = torch.arange(16000, dtype=torch.float64) / 16000
    for hertz in (4100, 5000, 7900):
        tone = torch.sin(2 * torch.pi * hertz * times)
        assert resample_audio(tone, 16000, 8000)[200:-200].abs().max() < 1e-4
    assert (resample_audio(torch.ones(16000), 16000, 11025)[200:-200] - 1).abs().max() < 1e-5


def test_both_ways_of_computing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = torch.randn(2, 3, 4000)
    for old, new in [(44100, 16000), (3, 7), (8000, 16000)]:
        dense = resample_audio(sound, old, new)
        monkeypatch.setattr("deepseek.data.audio.resampling._DENSE", 0)
        torch.testing.assert_close(resample_audio(sound, old, new), dense, atol=1e-5, rtol=0)
        monkeypatch.undo()


@pytest.mark.parametrize("dense", [1 << 20, 0])
def test_gradients(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek.data.audio.resampling._DENSE", dense)
    sound = torch.randn(2, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample_audio(x, 3, 2), sound)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 900), max_size=8), st.sampled_from([*PAIRS, (8000, 8000)]))
def test_a_stream_equals_the_whole_however_it_is_cut(cuts: list[int], rates: tuple[int, int]) -> None:
    sound = torch.randn(2, 900, generator=torch.Generator().manual_seed(0))
    stream = ResampleStream(*rates)
    places = [0, *sorted(cuts), 900]
    pieces = [stream.push(sound[:, a:b]) for a, b in zip(places, places[1:], strict=False)]
    last = stream.finish()
    pieces += [last] if last.numel() else []
    torch.testing.assert_close(torch.cat(pieces, dim=-1), resample_audio(sound, *rates), atol=1e-5, rtol=0)


def test_bad_rates_and_sounds() -> None:
    for rates in [(0, 8000), (8000, -1), (8000, 10**7), (8000.0, 16000), (767_999, 768_000)]:
        with pytest.raises(ConfigError):
            resample_audio(torch.zeros(10), *rates)
    with pytest.raises(DataError):
        resample_audio(torch.zeros(0), 8000, 16000)
    with pytest.raises(DataError):
        resample_audio(torch.tensor([0.0, torch.nan]), 8000, 16000)
    stream = ResampleStream(8000, 16000)
    stream.push(torch.zeros(2, 10))
    with pytest.raises(DataError, match="another shape"):
        stream.push(torch.zeros(3, 10))
    assert resample_audio(torch.ones(1), 44100, 16000).shape == (1,)


def test_the_stage() -> None:
    done = Pipeline([Resample(target_sr=16000)])({"waveform": sweep(8000).float(), "sample_rate": 8000})
    assert done["sample_rate"] == 16000 and done["waveform"].shape == (6400,)
    with pytest.raises(ConfigError):
        Resample(target_sr=0)


def test_a_faster_tone_is_shorter_and_higher() -> None:
    times = torch.arange(8000, dtype=torch.float64) / 8000
    for factor in (0.9, 1.1, 1.25):
        fast = change_speed(torch.sin(2 * torch.pi * 500 * times), factor)
        assert len(fast) == int(np.ceil(8000 / factor - 1e-9))
        expected = torch.sin(2 * torch.pi * 500 * factor * times[: len(fast)])[:6000]
        assert (fast[200:6000] - expected[200:]).abs().max() < 1e-4


def test_speeds_are_drawn_from_the_factors() -> None:
    pipeline = Pipeline([SpeedPerturb(factors=(0.8, 1.0, 1.25))])
    sample = {"waveform": torch.randn(1000), "sample_rate": 8000}
    lengths = [len(pipeline({**sample, "index": index})["waveform"]) for index in range(60)]
    assert set(lengths) == {1250, 1000, 800}
    assert lengths == [len(pipeline({**sample, "index": index})["waveform"]) for index in range(60)]
    for factors in ((), (0.0,), (float("nan"),), (100.0,)):
        with pytest.raises(ConfigError):
            SpeedPerturb(factors=factors)
