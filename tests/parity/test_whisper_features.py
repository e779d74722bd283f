"""Whisper's features are those of the public extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek.data import Pipeline, WhisperFeatures
from deepseek.errors import ConfigError, DataError


@pytest.mark.parametrize("seconds", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("bands", [80, 128])
def test_features_are_those_of_transformers(seconds: float, bands: int) -> None:
    transformers = pytest.importorskip("transformers")
    draw = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 300 * np.arange(int(seconds * 16_000)) / 16_000)
    sound = (0.1 * draw.standard_normal(len(tone)) * np.linspace(0, 1, len(tone)) + 0.3 * tone).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
    wanted = extractor(sound, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    found = Pipeline([WhisperFeatures(n_mels=bands)])({"waveform": torch.from_numpy(sound), "sample_rate": 16_000})
    np.testing.assert_allclose(found["input_features"], wanted, atol=1e-4)


def test_a_longer_sound_is_refused_or_cut() -> None:
    sample = {"waveform": torch.linspace(-1, 1, 16_000).sin(), "sample_rate": 16_000}
    with pytest.raises(DataError, match="too long"):
        Pipeline([WhisperFeatures(max_frames=50)])(sample)
    cut = Pipeline([WhisperFeatures(max_frames=50, too_long="cut")])(sample)["input_features"]
    half = Pipeline([WhisperFeatures(max_frames=50)])({**sample, "waveform": sample["waveform"][:8000]})
    assert cut.shape == (80, 50) and torch.equal(cut, half["input_features"])
    with pytest.raises(DataError, match="too short"):
        Pipeline([WhisperFeatures()])({**sample, "waveform": torch.zeros(100)})
    for settings in ({"max_frames": 2}, {"too_long": "guess"}, {"n_mels": 0}):
        with pytest.raises(ConfigError):
            WhisperFeatures(**settings)
