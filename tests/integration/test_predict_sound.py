"""Sounds as WAV bodies over HTTP: the answer is the model's own on the pipeline's features."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
import torch

from deepseek.data.audio.wav import encode_samples, make_wav_header
from deepseek.serve import BackgroundServer
from deepseek.tasks.build import build_task
from tests.toy_forms import MODELS, TOKENIZE, bundle
from tests.toy_speech import speech_bundle

HEARD = [{"name": "Resample", "target_sr": 16000}, {"name": "WhisperFeatures", "n_mels": 16, "max_frames": 100}]
SEEN = [{"name": "Resize", "size": 16}, {"name": "Normalize"}]
RATE = 8000
WAV = {"content-type": "audio/wav"}


def sound(seconds, seed=0):
    draw = np.random.default_rng(seed)
    return (0.1 * draw.standard_normal(int(seconds * RATE))).astype(np.float32)


def wav(samples):
    return make_wav_header(RATE, 1, len(samples), "float32") + encode_samples(samples[:, None], "float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "whisper": bundle(folder / "whisper", MODELS["whisper"], "seq2seq", [TOKENIZE, *HEARD], max_new_tokens=5),
        "clip": bundle(folder / "clip", MODELS["clip_sound"], "contrastive", [TOKENIZE, *SEEN, *HEARD]),
        "conformer": speech_bundle(folder / "conformer"),
    }


@pytest.fixture(scope="module")
def server(made):
    with BackgroundServer({name: one.path for name, one in made.items()}) as running:
        yield running


def features(one, samples, **more):
    return one.pipeline()({"waveform": torch.from_numpy(samples), "sample_rate": RATE, **more})["input_features"][None]


def test_whisper_writes_down_a_wav_body(server, made):
    one, samples = made["whisper"], sound(0.8)
    answer = httpx.post(f"{server.url}/v1/models/whisper:predict", content=wav(samples), headers=WAV).json()
    wanted = one.model.generate(features(one, samples, text="a"), 5)[0, 1:].tolist()
    wanted = wanted[: wanted.index(1)] if 1 in wanted else wanted
    assert answer["predictions"][0]["tokens"] == wanted
    assert answer["predictions"][0]["text"] == one.tokenizer.decode(wanted)
    long = httpx.post(f"{server.url}/v1/models/whisper:predict", content=wav(sound(1.5)), headers=WAV)
    assert long.status_code == 400 and "too long" in long.json()["error"]["message"]


def test_clip_gives_vectors_of_sounds(server, made):
    one, sounds = made["clip"], [sound(0.3), sound(0.9, 1)]
    instance = {"texts": ["the room"], "sounds": [{"b64": base64.b64encode(wav(each)).decode()} for each in sounds]}
    answer = httpx.post(f"{server.url}/v1/models/clip:predict", json={"instances": [instance]}).json()
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    heard = torch.cat([features(one, each, text="a", image=picture) for each in sounds])
    with torch.no_grad():
        wanted = one.model.encode_audio(heard)
    found = answer["predictions"][0]
    np.testing.assert_allclose(found["vectors"]["audio"], wanted, atol=1e-5)
    assert np.array(found["similarity"]["text_to_audio"]).shape == (1, 2)


def test_recordings_of_any_length_go_through_the_engine(server, made):
    one, task = made["conformer"], build_task("speech_recognition")
    sounds = [sound(seconds, seed) for seed, seconds in enumerate((0.4, 0.45, 0.7, 1.3))]
    instances = [{"b64": base64.b64encode(wav(each)).decode()} for each in sounds]
    answer = httpx.post(f"{server.url}/v1/models/conformer:predict", json={"instances": instances}).json()
    for found, each in zip(answer["predictions"], sounds, strict=True):
        assert found["tokens"] == task.predict(one.model, features(one, each, text="a"))[0] != []
    raw = httpx.post(f"{server.url}/v1/models/conformer:predict", content=wav(sounds[0]), headers=WAV).json()
    assert raw["predictions"][0] == answer["predictions"][0]
