"""Real recordings put together with pauses and noise: each utterance one final, at the time it was spoken."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek.data.audio import EndpointSettings, read_audio
from deepseek.serve.speech.model import speech_model
from deepseek.serve.speech.recognizer import Recognizer
from tests.toy_speech import cut, speech_bundle, text_of

pytestmark = pytest.mark.realdata

RATE, FRAME, NOISE = 8000, 80, 1e-3


def loud_part(waveform: Tensor) -> tuple[int, int]:
    """Return where the recording is 10 dB above the noise, in samples: frames of 10 ms, no filter, no memory."""
    whole = waveform[: len(waveform) // FRAME * FRAME].view(-1, FRAME)
    loud = (whole.square().mean(dim=1) > 10 * NOISE**2).nonzero().flatten()
    return int(loud[0]) * FRAME, (int(loud[-1]) + 1) * FRAME


def test_every_utterance_of_a_stream_is_one_final_at_its_time(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "audio" / "fsdd").glob("*.wav"))
    draw, parts, wanted, place = random.Random(0), [torch.zeros(6400)], [], 6400
    for path in draw.sample(files, 20):
        waveform, rate = read_audio(path)
        assert rate == RATE
        first, last = loud_part(waveform)
        wanted.append(((place + first) / RATE, (place + last) / RATE))
        parts += [waveform, torch.zeros(int(RATE * draw.uniform(0.7, 1.5)))]
        place += len(parts[-2]) + len(parts[-1])
    sound = torch.cat(parts)
    sound = sound + NOISE * torch.randn(len(sound), generator=torch.Generator().manual_seed(0))
    made = speech_bundle(tmp_path / "b", [{"name": "FeatureExtract", "n_mels": 16}])
    recognizer = Recognizer(speech_model(made), RATE, endpoints=EndpointSettings(min_pause_ms=500.0))
    found = [one for piece in cut(sound, 0) for one in recognizer.push(piece)] + recognizer.finish()
    finals = [one for one in found if one.final]
    assert len(finals) == len(wanted)
    off = torch.tensor([[one.start, one.end] for one in finals]) - torch.tensor(wanted)
    assert float(off.abs().median(dim=0).values.max()) <= 0.03  # three frames
    assert float(off.abs().max()) <= 0.15  # a breath, or a weak sound at an edge
    for one in finals[::5]:
        assert one.text == text_of(made, sound[round(one.heard[0] * RATE) : round(one.heard[1] * RATE)], RATE) != ""
