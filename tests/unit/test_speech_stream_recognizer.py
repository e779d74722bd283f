"""Streaming recognition: the text of the whole recording, for every way of cutting it; partial texts only grow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.audio.endpointer import EndpointSettings
from deepseek.errors import RequestError
from deepseek.serve.speech.model import can_stream, speech_model
from deepseek.serve.speech.recognizer import Recognizer
from tests.toy_speech import FEATURES, RATE, cut, speech_bundle, spoken, text_of

PAUSES = EndpointSettings(min_pause_ms=300.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return speech_bundle(tmp_path_factory.mktemp("speech") / "b")


@pytest.fixture(scope="module")
def model(made):
    return speech_model(made)


def run(model, pieces, endpoints=None, **options):
    recognizer = Recognizer(model, RATE, endpoints=endpoints, **options)
    return [result for piece in pieces for result in recognizer.push(piece)] + recognizer.finish()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), most=st.sampled_from([40, 700, 9000, 80_000]))
def test_the_streamed_text_is_that_of_the_whole(made, model, seed, most):
    waveform = spoken(0.7, pause=0.2, seed=seed)
    *_, last = run(model, cut(waveform, seed, most))
    assert last.final and last.text == text_of(made, waveform)
    assert (last.start, last.end) == (0.0, len(waveform) / RATE)


def test_every_utterance_is_recognised_as_a_recording_of_its_own(made, model):
    waveform = spoken(0.9, 0.6, 1.1)
    results = [run(model, cut(waveform, seed), PAUSES) for seed in range(4)] + [run(model, [waveform], PAUSES)]
    finals = [[one for one in found if one.final] for found in results]
    assert all(one == finals[0] for one in finals)
    assert [one.utterance for one in finals[0]] == [0, 1, 2]
    for one, (start, end) in zip(finals[0], [(0.8, 1.7), (2.5, 3.1), (3.9, 5.0)], strict=True):
        assert abs(one.start - start) <= 0.02 and abs(one.end - end) <= 0.02  # two frames of the endpointer
        assert start - 0.3 <= one.heard[0] <= start and end + 0.25 <= one.heard[1] <= end + 0.45
        piece = waveform[round(one.heard[0] * RATE) : round(one.heard[1] * RATE)]
        assert one.text == text_of(made, piece) != ""


def test_partial_texts_only_grow(model):
    found = run(model, cut(spoken(1.5, 1.5), 3, 1500), PAUSES, beam_size=1)  # the final text is then the last of them
    said: dict[int, str] = {}
    for one in found:
        assert one.text.startswith(said.get(one.utterance, ""))
        said[one.utterance] = one.text
    assert sum(not one.final for one in found) > 4
    partial = [one for one in run(model, cut(spoken(1.5, 1.5), 4, 700), PAUSES) if not one.final]
    assert all(said[one.utterance].startswith(one.text) for one in partial)


def test_state_stays_small_and_goes_with_the_utterance(model):
    recognizer = Recognizer(model, RATE, endpoints=PAUSES)
    sizes = []
    for piece in torch.split(spoken(4.0), 1600):
        recognizer.push(piece)
        sizes.append(recognizer.state_bytes)
    assert max(sizes[20:]) <= 1.2 * sizes[20] and sizes[0] == sizes[-1] == 0


def test_an_utterance_that_does_not_end_is_cut(model):
    found = [one for one in run(model, cut(spoken(3.5), 0), PAUSES, max_utterance=1.0) if one.final]
    assert len(found) >= 4
    assert all(one.end - one.start <= 1.05 for one in found)
    assert all(before.end == after.start for before, after in zip(found[:-1], found[1:], strict=True))


def test_silence_says_nothing(model):
    assert run(model, [torch.zeros(RATE)], PAUSES) == []
    assert [one.text for one in run(model, [torch.zeros(10)])] == [""]


@pytest.mark.parametrize(
    ("stages", "encoder", "said"),
    [
        ([*FEATURES, {"name": "MeanVarianceNorm"}], {}, "MeanVarianceNorm"),
        (None, {"chunk_size": None, "left_chunks": None}, "chunk"),
        (None, {"causal": False, "chunk_size": None, "left_chunks": None}, "causal"),
    ],
)
def test_a_model_that_cant_stream_says_why(tmp_path, stages, encoder, said):
    made = speech_bundle(tmp_path / "b", stages, **encoder)
    assert not can_stream(made)
    with pytest.raises(RequestError, match=said) as refused:
        speech_model(made)
    assert refused.value.status == 501


def test_a_model_of_something_else_is_refused():
    with pytest.raises(RequestError, match="does not recognise speech"):
        speech_model(None)
