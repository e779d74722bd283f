"""Features of sound in pieces: those of the whole recording, however it is cut."""

from __future__ import annotations

import pytest
import torch

from deepseek.data.audio.features import (
    Cepstra,
    Deltas,
    FeatureExtract,
    LogMel,
    MeanVarianceNorm,
    PreEmphasis,
)
from deepseek.data.audio.global_norm import GlobalMeanVarianceNorm
from deepseek.data.audio.resample import Resample
from deepseek.data.pipeline.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError
from deepseek.serve.speech.features import FeatureStream, check_stages
from tests.toy_speech import cut, spoken

ROADS = {
    "kaldi": [FeatureExtract(n_mels=40)],
    "kaldi mfcc": [Resample(target_sr=8000), LogMel(n_mels=23), Cepstra(type="mfcc", n_mfcc=13)],
    "librosa": [LogMel(n_mels=40, style="librosa"), Cepstra(type="log_mel")],
    "librosa, hop beyond the window": [LogMel(n_mels=20, style="librosa", hop_ms=40.0), Cepstra(type="log_mel")],
    "up and sharpened": [Resample(target_sr=22050), PreEmphasis(), LogMel(n_mels=20), Cepstra(type="log_mel")],
    "scaled": [
        FeatureExtract(n_mels=3),
        GlobalMeanVarianceNorm(means=(-8.0, -7.0, 0.5), stds=(2.0, 3.0, 0.25)),
    ],
    "hop of its own": [LogMel(n_mels=40, hop_ms=5.0), Cepstra(type="log_mel")],
}


@pytest.mark.parametrize("stages", ROADS.values(), ids=ROADS)
@pytest.mark.parametrize("most", [50, 3000, 100_000])
def test_the_frames_are_those_of_the_whole(stages, most):
    waveform = spoken(0.4, pause=0.3)
    whole = Pipeline(stages)({"waveform": waveform, "sample_rate": 16000})["input_features"]
    stream = FeatureStream(stages, 16000)
    parts = [stream.push(piece) for piece in cut(waveform, 1, most)] + [stream.finish()]
    joined = torch.cat([part for part in parts if len(part)])
    assert joined.shape == whole.shape
    torch.testing.assert_close(joined, whole, rtol=1e-4, atol=5e-3)  # bands the resampler emptied hold rounding alone
    assert (joined - whole).abs().mean() < 1e-5


@pytest.mark.parametrize("samples", [0, 1, 399, 400])
@pytest.mark.parametrize("name", ["kaldi", "librosa"])
def test_hardly_any_sound_gives_as_many_frames_as_the_whole(name, samples):
    stream = FeatureStream(ROADS[name], 16000)
    waveform = torch.linspace(-0.5, 0.5, samples)
    frames = len(stream.push(waveform)) + len(stream.finish())
    assert frames == ({"kaldi": samples // 400, "librosa": 1 + samples // 160}[name] if samples else 0)


@pytest.mark.parametrize("stage", [MeanVarianceNorm(), Deltas(), Cepstra(type="mfcc", style="librosa")])
def test_a_stage_that_needs_the_whole_recording_is_named(stage):
    with pytest.raises(ConfigError, match=type(stage).__name__):
        check_stages([LogMel(n_mels=20), stage])


def test_without_spectra_there_are_no_features():
    with pytest.raises(ConfigError, match="no spectra"):
        check_stages([Resample(target_sr=8000)])


def test_what_is_no_sound_is_refused():
    with pytest.raises(DataError):
        FeatureStream([FeatureExtract()], 16000).push(torch.full((1000,), torch.nan))
