"""Log-mel and cepstra: equal to kaldi-native-fbank, librosa (where installed) and formulas; batched, differentiable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from deepseek.data.audio import (
    Cepstra,
    Deltas,
    FeatureExtract,
    LogMel,
    MeanVarianceNorm,
    MelSettings,
    PreEmphasis,
    Resample,
    SpecAugment,
    cepstra,
    deltas,
    fbank,
    log_mel,
    mfcc,
    normalize_features,
    normalize_sliding,
    pre_emphasis,
)
from deepseek.data.audio.mel import mel_filters
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError

RATES = [8000, 11025, 16000, 44100]


def chirp(rate: int, seconds: float = 0.7, seed: int = 0) -> Tensor:
    """A tone that rises, in noise, with an offset."""
    times = np.arange(int(rate * seconds)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(times))
    sound = 0.4 * np.sin(2 * np.pi * (200 + rate / 6 * times) * times) + 0.02 * noise + 0.01
    return torch.tensor(sound, dtype=torch.float32)


def kaldi(sound: Tensor, rate: int, n_mels: int, cepstral: int | None = None) -> np.ndarray:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions() if cepstral is None else knf.MfccOptions()
    options.frame_opts.dither, options.frame_opts.samp_freq, options.mel_opts.num_bins = 0.0, rate, n_mels
    if cepstral is not None:
        options.num_ceps, options.use_energy = cepstral, False
    computer = (knf.OnlineFbank if cepstral is None else knf.OnlineMfcc)(options)
    computer.accept_waveform(rate, sound.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(frame) for frame in range(computer.num_frames_ready)])


@pytest.mark.parametrize("rate", RATES)
def test_kaldi_style_equals_kaldi(rate: int) -> None:
    sound = chirp(rate)
    theirs = kaldi(sound, rate, 40)
    ours = fbank(sound, rate, 40)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    settings = MelSettings(rate, n_mels=40)
    np.testing.assert_allclose(mfcc(sound, settings), kaldi(sound, rate, 40, 13), atol=1e-3)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(16000, 512, 80), (16000, 400, 40), (22050, 2048, 128)])
def test_librosa_style_equals_librosa(rate: int, n_fft: int, n_mels: int) -> None:
    librosa = pytest.importorskip("librosa")
    sound = chirp(rate)
    settings = MelSettings(rate, "librosa", n_mels, window_ms=25.0, hop_ms=10.0, n_fft=n_fft)
    sizes = {"n_fft": n_fft, "hop_length": settings.hop, "win_length": settings.window, "n_mels": n_mels}
    theirs = librosa.feature.melspectrogram(y=sound.numpy(), sr=rate, **sizes).T
    np.testing.assert_allclose(log_mel(sound, settings), np.log(np.maximum(theirs, 1e-10)), atol=1e-3)
    for lifter in (0, 22):
        theirs = librosa.feature.mfcc(y=sound.numpy(), sr=rate, n_mfcc=20, lifter=lifter, **sizes).T
        np.testing.assert_allclose(mfcc(sound, settings, 20, lifter), theirs, atol=1e-3)


def test_a_spectrum_equals_its_definition_in_float64() -> None:
    sound, settings = chirp(8000, 0.2).double(), MelSettings(8000, n_mels=20, f_min=100, f_max=3800)
    frames = sound.unfold(0, 200, 80).numpy()
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= 0.97 * frames[:, :-1].copy()
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 199)) ** 0.85
    power = np.abs(np.fft.fft(frames * window, 256)[:, :129]) ** 2
    np.testing.assert_allclose(log_mel(sound, settings), np.log(power @ mel_filters(settings).T), atol=1e-9)


@pytest.mark.parametrize("style", ["kaldi", "librosa"])
def test_a_batch_equals_its_rows_whatever_the_blocks(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = torch.stack([chirp(16000, seed=seed) for seed in range(6)]).reshape(2, 3, -1)
    settings = MelSettings(style=style)
    rows = torch.stack([log_mel(row, settings) for row in sounds.flatten(0, 1)]).reshape(2, 3, -1, 80)
    torch.testing.assert_close(log_mel(sounds, settings), rows)
    monkeypatch.setattr("deepseek.data.audio.spectrogram._BLOCK", 512 * 7)
    torch.testing.assert_close(log_mel(sounds, settings), rows)


@pytest.mark.parametrize("style", ["kaldi", "librosa"])
def test_features_have_gradients_and_survive_inference_mode(style: str) -> None:
    settings = MelSettings(8000, style, n_mels=5, window_ms=4, hop_ms=2)
    with torch.inference_mode():
        mfcc(chirp(8000, 0.02), settings, 4)
    sound = chirp(8000, 0.02).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mfcc(x, settings, 4), sound)


def test_scaling_the_sound_shifts_the_log() -> None:
    sound = chirp(16000)
    torch.testing.assert_close(log_mel(sound * 8), log_mel(sound) + 2 * np.log(8), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (torch.zeros(0), "too short"),
        (torch.zeros(399), "too short for one frame"),
        (torch.full((800,), torch.nan), "not finite"),
        (torch.tensor([torch.inf, -torch.inf]).repeat(400), "not finite"),
        (torch.zeros(800, dtype=torch.int16), "no tensor of floats"),
        (torch.zeros(0, 800), "too short"),
        (np.zeros(800), "no tensor of floats"),
    ],
)
def test_bad_sounds_are_refused(sound: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        log_mel(sound)


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_rate": 0},
        {"style": "htk"},
        {"n_mels": 0},
        {"window_ms": 0.0},
        {"hop_ms": float("nan")},
        {"n_fft": 256},
        {"n_fft": 1 << 30},
        {"window_ms": 1e9},
        {"f_min": 9000.0},
        {"f_max": 9000.0},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        MelSettings(**settings)


def test_empty_filters_are_told(caplog: pytest.LogCaptureFixture) -> None:
    log_mel(chirp(8000), MelSettings(8000, n_mels=200))
    assert "stay empty" in caplog.text


def test_deltas_equal_a_line_fitted_to_the_neighbours() -> None:
    features = torch.randn(2, 30, 3, dtype=torch.float64)
    for window in (1, 2, 4):
        theirs = savgol_filter(features.numpy(), 2 * window + 1, 1, deriv=1, axis=1, mode="nearest")
        np.testing.assert_allclose(deltas(features, window), theirs, atol=1e-12)
    assert deltas(features[:, :1]).abs().max() < 1e-15


def test_normalised_features_have_mean_0_and_variance_1() -> None:
    features = torch.randn(50, 4) * 3 + 7
    features[:, 2] = 5
    found = normalize_features(features)
    assert found.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(found.var(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(normalize_features(features, variance=False), features - features.mean(0))


@pytest.mark.parametrize("variance", [False, True])
def test_a_sliding_window_equals_normalising_each_frame_in_its_own(variance: bool) -> None:
    features, window = torch.randn(2, 40, 3) + 100, 9
    found = normalize_sliding(features, window, variance)
    for frame in range(40):
        first = min(max(frame - window // 2, 0), 40 - window)
        part = normalize_features(features[:, first : first + window], variance)
        torch.testing.assert_close(found[:, frame], part[:, frame - first], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(normalize_sliding(features, 60), normalize_features(features, False), atol=1e-4, rtol=0)


def test_pre_emphasis_equals_its_formula() -> None:
    torch.testing.assert_close(pre_emphasis(torch.tensor([1.0, 2.0, 4.0]), 0.5), torch.tensor([0.5, 1.5, 3.0]))


def test_the_pipeline_masks_before_the_cepstra() -> None:
    pipeline = Pipeline(
        [
            Resample(target_sr=16000),
            SpecAugment(freq_mask=10, time_mask=20),
            FeatureExtract(type="mfcc", n_mels=80),
        ]
    )
    assert [type(step) for step in pipeline.steps] == [Resample, LogMel, SpecAugment, Cepstra]
    shown = repr(pipeline)
    assert shown.index("LogMel") < shown.index("SpecAugment") < shown.index("Cepstra")
    samples = [{"waveform": chirp(8000, 0.5 + 0.1 * place), "sample_rate": 8000} for place in range(3)]
    batch = pipeline(samples)
    assert batch["input_features"].shape == (3, 68, 13)
    assert batch["lengths"].tolist() == [48, 58, 68]
    again = Pipeline.from_config(pipeline.to_config())
    assert torch.equal(again(samples)["input_features"], batch["input_features"])
    plain = pipeline.without_augmentation()(samples[0])["input_features"]
    resampled = Pipeline([Resample()])(samples[0])["waveform"]
    torch.testing.assert_close(plain, mfcc(resampled, MelSettings(16000)))


def test_all_stages_of_features_together() -> None:
    stages = [PreEmphasis(), FeatureExtract(type="log_mel", n_mels=40), MeanVarianceNorm(window=20), Deltas(order=2)]
    sample = {"waveform": torch.stack([chirp(16000)] * 2), "sample_rate": 16000, "label": 3}
    done = Pipeline(stages)(sample)
    assert done["input_features"].shape == (68, 120) and done["label"] == 3
    assert "waveform" not in done and "spectrogram" not in done
    expected = normalize_sliding(log_mel(pre_emphasis(chirp(16000)), MelSettings(n_mels=40)), 20, True)
    torch.testing.assert_close(done["input_features"][:, :40], expected)
    assert Pipeline.from_config(Pipeline(stages).to_config()).steps == Pipeline(stages).steps


def test_errors_of_stages_name_the_file() -> None:
    pipeline = Pipeline([FeatureExtract()])
    with pytest.raises(DataError, match=r"LogMel failed on sample 0 \(a\.wav\)"):
        pipeline({"waveform": torch.zeros(10), "sample_rate": 16000, "path": "a.wav"})
    with pytest.raises(DataError, match="sample_rate"):
        pipeline({"waveform": torch.zeros(16000)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureExtract(type="plp"),
        lambda: FeatureExtract(type="mfcc", n_mels=10),
        lambda: FeatureExtract(n_mels=0),
        lambda: FeatureExtract(lifter=-1.0),
        lambda: MeanVarianceNorm(window=1),
        lambda: Deltas(order=3),
        lambda: PreEmphasis(coefficient=2.0),
    ],
)
def test_stages_with_wrong_settings_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_too_few_bands_for_the_cepstra() -> None:
    with pytest.raises(DataError, match="too few mel bands"):
        cepstra(torch.zeros(5, 10), 13)
