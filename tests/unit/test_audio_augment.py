"""Augmentation of sound: masks, warps, mixes and noise are what their settings say, and change nothing in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.audio import (
    AddNoise,
    AddSilence,
    SpecAugment,
    SpecMix,
    add_noise,
    mix_spectra,
    pink_noise,
    time_warp,
    write_audio,
)
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError


def runs(flags: np.ndarray) -> int:
    return int(np.diff(np.concatenate([[0], flags.astype(int), [0]])).clip(0).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 80), st.integers(0, 10_000))
def test_masks_stay_within_their_widths(frames: int, n_mels: int, seed: int) -> None:
    spectrum = 1 + torch.rand(frames, n_mels)
    before = spectrum.clone()
    stage = SpecAugment(freq_mask=10, time_mask=20, time_warp=0.0, max_time_share=0.5, fill="zero")
    found = stage.apply({"spectrogram": spectrum}, np.random.default_rng(seed))["spectrogram"]
    hidden = (found == 0).numpy()
    times, bands = hidden.all(axis=1), hidden.all(axis=0)
    if not times.all() and not bands.all():
        assert (hidden == (times[:, None] | bands[None, :])).all()
        assert times.sum() <= min(20, frames // 2) and bands.sum() <= min(10, n_mels)
        assert runs(times) <= 1 and runs(bands) <= 1
    assert torch.equal(spectrum, before)
    assert torch.equal(found[~torch.tensor(hidden)], spectrum[~torch.tensor(hidden)])


def test_all_widths_and_places_come_up() -> None:
    stage = SpecAugment(freq_mask=3, time_mask=0, time_warp=0.0, fill="zero")
    rng, seen = np.random.default_rng(0), set()
    for _ in range(500):
        hidden = (stage.apply({"spectrogram": torch.ones(2, 6)}, rng)["spectrogram"][0] == 0).nonzero().flatten()
        seen.add((len(hidden), int(hidden[0]) if len(hidden) else 0))
    assert seen == {(0, 0)} | {(width, start) for width in (1, 2, 3) for start in range(6 - width + 1)}


def test_the_mean_fills_masks() -> None:
    spectrum = torch.rand(40, 20)
    stage = SpecAugment(freq_mask=20, time_mask=40, num_freq_masks=4, num_time_masks=4, time_warp=0.0)
    found = stage.apply({"spectrogram": spectrum}, np.random.default_rng(1))["spectrogram"]
    changed = found != spectrum
    assert changed.any() and torch.all(found[changed] == spectrum.mean())


@given(st.integers(3, 60), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_warp_moves_one_frame_and_keeps_the_ends(frames: int, source: float, target: float) -> None:
    last = frames - 1
    ramp = torch.arange(frames, dtype=torch.float64)[:, None].repeat(1, 2)
    found = time_warp(ramp, source * last, target * last)[:, 0].numpy()
    expected = np.interp(np.arange(frames), [0, target * last, last], [0, source * last, last])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_warp_changes_speed_by_no_more_than_its_share() -> None:
    ramp = torch.arange(100.0)[:, None]
    stage = SpecAugment(freq_mask=0, time_mask=0, time_warp=0.2)
    steps = torch.cat(
        [
            stage.apply({"spectrogram": ramp}, np.random.default_rng(seed))["spectrogram"].diff(dim=0)
            for seed in range(99)
        ]
    )
    assert steps.min() > 1 / 1.2 - 1e-3 and steps.max() < 1 / 0.8 + 1e-3
    assert steps.min() < 0.88 and steps.max() > 1.15
    for frames in (1, 2, 3):
        stage.apply({"spectrogram": ramp[:frames]}, np.random.default_rng(0))


def test_gradients_pass_a_warp_and_out_of_range_is_refused() -> None:
    assert torch.autograd.gradcheck(
        lambda x: time_warp(x, 2.0, 3.5), torch.randn(2, 6, 3, dtype=torch.float64).requires_grad_()
    )
    for source, target in ((0, 3), (3, 5), (3, float("nan"))):
        with pytest.raises(ConfigError):
            time_warp(torch.zeros(6, 2), source, target)


def mixed(samples: list[dict], seed: int = 0, **options: float) -> list[dict]:
    return Pipeline([SpecMix(num_labels=3, **options)], seed=seed).apply(samples)


def test_a_mix_is_bands_of_another_sample_and_the_label_its_share() -> None:
    samples = [{"spectrogram": torch.full((frames, 20), float(k)), "label": k} for k, frames in enumerate((30, 30, 17))]
    some = 0
    for seed in range(30):
        for k, done in enumerate(mixed(samples, seed, probability=1.0)):
            spectrum, label = done["spectrogram"], done["label"]
            assert spectrum.shape == samples[k]["spectrogram"].shape
            shares = torch.tensor([(spectrum == other).float().mean() for other in range(3)])
            torch.testing.assert_close(label, shares)
            other = (spectrum != k).numpy()
            if other.any():
                some += 1
                end = min(len(other), 17) if (spectrum == 2).any() else len(other)
                part = other[:end]
                times, bands = part.all(axis=1), part.all(axis=0)
                assert (part == (times[:, None] | bands[None, :])).all() and not other[end:].any()
    assert some > 20
    assert [int(sample["spectrogram"].max()) for sample in samples] == [0, 1, 2]


def test_no_mix_still_makes_shares_and_a_batch() -> None:
    samples = [{"spectrogram": torch.zeros(5, 4), "label": k} for k in range(3)]
    assert [row["label"].tolist() for row in mixed(samples, probability=0.0)] == torch.eye(3).tolist()
    shares = [{"spectrogram": torch.rand(5, 4), "label": torch.tensor([0.5, 0.5, 0])} for _ in range(3)]
    batch = Pipeline([SpecMix(num_labels=3, probability=1.0)])(shares)
    torch.testing.assert_close(batch["labels"], torch.tensor([[0.5, 0.5, 0]] * 3))


def test_mixing_with_a_longer_or_shorter_sound() -> None:
    own, mask = torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.bool)
    assert mix_spectra(own, torch.ones(9, 2), mask)[1] == 0
    spectrum, kept = mix_spectra(own, torch.ones(1, 2), mask)
    assert spectrum.sum() == 2 and kept == 0.75


@pytest.mark.parametrize("label", [3, -1, None, 1.5, torch.zeros(4), "a"])
def test_labels_that_cannot_be_mixed(label: object) -> None:
    with pytest.raises(DataError, match="label"):
        mixed([{"spectrogram": torch.zeros(5, 4), "label": label}])


def test_spectra_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="mel bands"):
        mixed([{"spectrogram": torch.zeros(5, bands), "label": 0} for bands in (4, 5)])


@given(st.floats(-20, 60), st.integers(1, 500))
def test_noise_has_the_ratio_asked_for(ratio: float, time: int) -> None:
    generator = torch.Generator().manual_seed(time)
    sound, noise = (torch.randn(2, time, dtype=torch.float64, generator=generator) for _ in range(2))
    added = add_noise(sound, noise, ratio) - sound
    found = 10 * torch.log10(sound.square().mean(-1) / added.square().mean(-1))
    torch.testing.assert_close(found, torch.full((2,), ratio, dtype=torch.float64), atol=1e-6, rtol=0)


def test_silence_stays_silent() -> None:
    assert add_noise(torch.zeros(9), torch.randn(9), 10.0).abs().max() == 0
    assert torch.equal(add_noise(torch.ones(9), torch.zeros(9), 10.0), torch.ones(9))


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    noise = pink_noise(1 << 17, np.random.default_rng(0)).numpy()
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [10 * np.log10(power[1 << k : 1 << (k + 1)].mean()) for k in range(7, 15)]
    assert abs(np.diff(octaves).mean() + 3.01) < 0.15
    assert abs(np.mean(noise**2) - 1) < 1e-9
    assert pink_noise(1, np.random.default_rng(0)).isfinite().all()


def test_the_noise_stage(tmp_path: Path) -> None:
    times = torch.arange(6000) / 8000
    (tmp_path / "deep").mkdir()
    write_audio(tmp_path / "deep" / "hum.wav", 0.5 * torch.sin(2 * torch.pi * 1000 * times[:3000]), 16000)
    sound = torch.sin(2 * torch.pi * 300 * times)
    for noise in ("white", "pink", str(tmp_path)):
        pipeline = Pipeline([AddNoise(snr_db=(9.0, 11.0), noise=noise)])
        sample = {"waveform": sound, "sample_rate": 8000}
        added = pipeline(sample)["waveform"] - sound
        assert 8.9 < 10 * torch.log10(sound.square().mean() / added.square().mean()) < 11.1
        assert torch.equal(pipeline(sample)["waveform"], added + sound) or noise != "white"
        assert pipeline.without_augmentation().steps == ()
        assert Pipeline.from_config(pipeline.to_config()).steps == pipeline.steps
    peak = torch.fft.rfft(added).abs().argmax() * 8000 / 6000
    assert abs(peak - 2000) < 40  # what was written for 8 kHz is an octave higher at 16 kHz
    never = Pipeline([AddNoise(probability=0.0)])(sample)
    assert torch.equal(never["waveform"], sound)


def test_folders_of_noise_that_hold_none(tmp_path: Path) -> None:
    sample = {"waveform": torch.randn(100), "sample_rate": 8000}
    with pytest.raises(DataError, match="holds no sound"):
        Pipeline([AddNoise(noise=str(tmp_path))])(sample)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AddNoise(noise="/nowhere"),
        lambda: AddNoise(snr_db=(20.0, 5.0)),
        lambda: AddNoise(snr_db=(0.0, float("nan"))),
        lambda: AddNoise(probability=2.0),
        lambda: SpecAugment(freq_mask=-1),
        lambda: SpecAugment(time_warp=1.0),
        lambda: SpecAugment(max_time_share=0.0),
        lambda: SpecAugment(fill="min"),
        lambda: SpecMix(num_labels=0),
        lambda: SpecMix(num_labels=3, probability=-1),
        lambda: SpecMix(num_labels=3, band_share=0.0),
    ],
)
def test_wrong_settings(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_silence_goes_around_the_sound_and_is_quiet() -> None:
    sound = torch.ones(2, 800)
    stage = AddSilence(before_ms=200.0, after_ms=400.0, level_db=(-60.0, -40.0))
    before, after = [], []
    for seed in range(60):
        found = stage.apply({"waveform": sound, "sample_rate": 8000}, np.random.default_rng(seed))["waveform"]
        first = int((found[0] == 1).nonzero()[0])
        assert torch.equal(found[:, first : first + 800], sound)
        quiet = torch.cat([found[:, :first], found[:, first + 800 :]], dim=1)
        assert -61 < 10 * np.log10(float(quiet.square().mean())) < -39
        before.append(first)
        after.append(found.shape[1] - first - 800)
    assert 0 <= min(before) < 400 and 1200 < max(before) <= 1600 and 2400 < max(after) <= 3200
    same = AddSilence(probability=0.0).apply({"waveform": sound, "sample_rate": 8000}, np.random.default_rng(0))
    assert torch.equal(same["waveform"], sound)
    for settings_ in ({"before_ms": -1.0}, {"level_db": (-10.0, -20.0)}, {"probability": 2.0}):
        with pytest.raises(ConfigError):
            AddSilence(**settings_)
