"""Spoken digits (FSDD) through the sound pipeline: features, augmentation, and endpoints of digits in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek.data.audio import (
    EndpointSettings,
    FeatureExtract,
    MeanVarianceNorm,
    Resample,
    SpecAugment,
    TrimSilence,
    audio_info,
    detect_speech,
    read_audio,
)
from deepseek.data.pipeline import Pipeline

pytestmark = pytest.mark.realdata


def digits(real_data: Path, step: int = 1) -> list[Path]:
    return sorted((real_data / "audio" / "fsdd").glob("*.wav"))[::step]


def sample(path: Path, index: int = 0) -> dict:
    waveform, rate = read_audio(path)
    return {"waveform": waveform, "sample_rate": rate, "label": int(path.name[0]), "path": str(path), "index": index}


def test_every_recording_is_read_as_its_header_says(real_data: Path) -> None:
    for path in digits(real_data, 5):
        info, (waveform, rate) = audio_info(path), read_audio(path)
        assert (info.sample_rate, info.channels, info.frames) == (rate, 1, len(waveform)) and rate == 8000
        assert 0 < waveform.abs().max() <= 1


def test_digits_go_through_the_pipeline_of_the_specification(real_data: Path) -> None:
    stages = [
        Resample(target_sr=16000),
        SpecAugment(freq_mask=10, time_mask=20),
        FeatureExtract(type="mfcc", n_mels=80),
    ]
    samples = [sample(path, place) for place, path in enumerate(digits(real_data, 50))]
    pipeline = Pipeline(stages)
    batch = pipeline(samples)
    assert batch["input_features"].shape == (50, int(batch["lengths"].max()), 13)
    assert batch["labels"].tolist() == [one["label"] for one in samples]
    again = pipeline([samples[7]])["input_features"][0]
    torch.testing.assert_close(again, batch["input_features"][7, : len(again)])


def test_the_mean_spectra_of_digits_tell_them_apart(real_data: Path) -> None:
    """The nearest mean of 20 stretched spectra names a held-out recording of the same speaker far above chance."""
    pipeline = Pipeline([TrimSilence(), Resample(), FeatureExtract(type="mfcc", n_mels=40), MeanVarianceNorm()])
    found: dict[int, list[torch.Tensor]] = {digit: [] for digit in range(10)}
    for digit in range(10):
        for path in sorted((real_data / "audio" / "fsdd").glob(f"{digit}_george_*.wav"))[:30]:
            features = pipeline(sample(path))["input_features"]
            stretched = torch.nn.functional.interpolate(features.T[None], size=20, mode="linear", align_corners=True)
            found[digit].append(stretched.flatten())
    means = torch.stack([torch.stack(found[digit][:20]).mean(0) for digit in range(10)])
    held_out = torch.stack([row for digit in range(10) for row in found[digit][20:]])
    answers = torch.cdist(held_out, means).argmin(1)
    right = (answers == torch.arange(10).repeat_interleave(len(held_out) // 10)).float().mean()
    assert right > 0.6, right  # measured 0.79; chance is 0.1


@pytest.mark.parametrize("method", ["energy", "statistical"])
def test_digits_embedded_in_noise_are_found(real_data: Path, method: str) -> None:
    rng = np.random.default_rng(0)
    energy = covered = 0.0
    missed = extra = count = 0
    for first in range(0, 40, 4):
        parts, spans, at = [np.zeros(5000)], [], 5000
        for path in digits(real_data, 61)[first : first + 4]:
            sound = read_audio(path)[0].double().numpy()
            sound *= 0.1 / np.sqrt(np.mean(sound**2))
            spans.append((at, at + len(sound)))
            parts += [sound, np.zeros(4000)]
            at += len(sound) + 4000
        clean = np.concatenate(parts)
        noisy = clean + 0.1 * 10 ** (-15 / 20) * rng.standard_normal(len(clean))
        found = detect_speech(torch.tensor(noisy, dtype=torch.float32), 8000, EndpointSettings(method))
        inside = np.zeros(len(clean), dtype=bool)
        for part in found:
            inside[part.start : part.end] = True
        energy, covered = energy + np.sum(clean**2), covered + np.sum(clean[inside] ** 2)
        count += len(spans)
        missed += sum(not inside[start:end].any() for start, end in spans)
        padded = np.zeros(len(clean), dtype=bool)
        for start, end in spans:
            padded[start - 240 : end + 240] = True
        extra += int((inside & ~padded).sum())
    assert missed == 0 and count == 40
    assert covered / energy > 0.97, covered / energy
    assert extra == 0
