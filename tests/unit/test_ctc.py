"""CTC: the loss and both decoders against a sum over every path, the joint loss, lengths that can't be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import DataError, ModelError
from deepseek.models.ctc_decoding import GreedyStream, greedy_decode, prefix_beam_search
from deepseek.nn.ctc import ctc_loss_sum, decoder_inputs_targets, frames_needed, joint_ctc_attention_loss_sum
from deepseek.nn.losses import IGNORE


def spelled(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Return the text of a path: repeats dropped, then blanks."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def text_probabilities(logits: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Return the probability of every text, by adding up every path through (time, vocab_size)."""
    frames = logits.double().softmax(-1).tolist()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(frames)):
        text = spelled(path, blank)
        found[text] = found.get(text, 0.0) + math.prod(frame[token] for frame, token in zip(frames, path, strict=True))
    return found


# --- loss


@pytest.mark.parametrize("blank", [0, 2])
def test_the_loss_is_the_sum_over_all_paths(blank: int) -> None:
    logits, lengths = torch.randn(4, 5, 3), torch.tensor([5, 3, 5, 4])
    one, two = sorted({0, 1, 2} - {blank})
    texts = [(one, two, one), (two, two), (), (one,)]
    labels = torch.tensor([[*text, *[IGNORE] * (3 - len(text))] for text in texts])
    wanted = 0.0
    for row, text in enumerate(texts):
        wanted -= math.log(text_probabilities(logits[row, : lengths[row]], blank)[text])
    assert ctc_loss_sum(logits, labels, lengths, blank).item() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_is_float32_and_its_gradient_right() -> None:
    logits = torch.randn(2, 4, 3, dtype=torch.bfloat16)
    labels, lengths = torch.tensor([[1, 2], [1, IGNORE]]), torch.tensor([4, 3])
    assert ctc_loss_sum(logits, labels, lengths).dtype == torch.float32
    wide = logits.float().requires_grad_()
    (gradient,) = torch.autograd.grad(ctc_loss_sum(wide, labels, lengths), wide)
    assert not gradient[1, 3].any()  # behind the recording
    step = torch.zeros_like(wide)
    step[0, 1, 2] = 1e-2
    slope = ctc_loss_sum(wide + step, labels, lengths) - ctc_loss_sum(wide - step, labels, lengths)
    assert gradient[0, 1, 2].item() == pytest.approx(slope.item() / 2e-2, abs=1e-3)


def test_frames_needed_are_the_shortest_path() -> None:
    texts = [(1, 2, 1), (1, 1, 1), (1, 1, 2), (), (2,)]
    labels = torch.tensor([[*text, *[IGNORE] * (3 - len(text))] for text in texts])
    shortest = []
    for text in texts:
        found = (
            time
            for time in range(7)
            if any(spelled(path, 0) == text for path in itertools.product(range(3), repeat=time))
        )
        shortest.append(next(found))
    assert frames_needed(labels).tolist() == shortest == [3, 5, 4, 0, 1]


@pytest.mark.parametrize(
    ("labels", "lengths", "words"),
    [
        (
            [[1, 2], [1, 1]],
            [2, 2],
            r"sample 1 has more text than frames\n  found:  2 encoder frames\n  wanted: at least 3",
        ),
        ([[1, 0], [1, 2]], [4, 4], "can't be spoken"),
        ([[1, 9], [1, 2]], [4, 4], "ids 1 to 9"),
        ([[IGNORE, 1], [1, 2]], [4, 4], "padding before a token"),
        ([[1, 2], [1, 2]], [4, 5], "goes past the frames"),
    ],
)
def test_texts_that_cannot_be_are_refused_by_number(labels: list[list[int]], lengths: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ctc_loss_sum(torch.zeros(2, 4, 3), torch.tensor(labels), torch.tensor(lengths))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ModelError, match="logits"):
        ctc_loss_sum(torch.zeros(4, 3), torch.tensor([[1]]), torch.tensor([4]))
    with pytest.raises(ModelError, match="labels"):
        ctc_loss_sum(torch.zeros(2, 4, 3), torch.tensor([[1]]), torch.tensor([4, 4]))
    with pytest.raises(ModelError, match="lengths"):
        ctc_loss_sum(torch.zeros(1, 4, 3), torch.tensor([[1]]), torch.tensor([4, 4]))


def test_what_the_decoder_reads_and_says() -> None:
    labels = torch.tensor([[1, 2, 3], [4, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE]])
    inputs, targets = decoder_inputs_targets(labels, end_id=9)
    assert inputs.tolist() == [[9, 1, 2, 3], [9, 4, 9, 9], [9, 9, 9, 9]]
    assert targets.tolist() == [[1, 2, 3, 9], [4, 9, IGNORE, IGNORE], [9, IGNORE, IGNORE, IGNORE]]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_joint_loss_is_the_weighted_sum(weight: float) -> None:
    ctc_logits, decoder_logits = torch.randn(2, 6, 5), torch.randn(2, 3, 5)
    labels, lengths = torch.tensor([[1, 2], [3, IGNORE]]), torch.tensor([6, 5])
    found = joint_ctc_attention_loss_sum(
        ctc_logits, decoder_logits, labels, lengths, blank_id=0, end_id=4, ctc_weight=weight
    )
    log_probs = decoder_logits.log_softmax(-1)
    by_hand = -(log_probs[0, 0, 1] + log_probs[0, 1, 2] + log_probs[0, 2, 4] + log_probs[1, 0, 3] + log_probs[1, 1, 4])
    wanted = weight * ctc_loss_sum(ctc_logits, labels, lengths) + (1 - weight) * by_hand
    torch.testing.assert_close(found, wanted)


def test_the_loss_compiles_without_graph_breaks() -> None:
    labels, lengths = torch.tensor([[1, 2], [3, IGNORE]]), torch.tensor([6, 5])

    def whole(features: Tensor) -> Tensor:
        return 2 * ctc_loss_sum(features.sin(), labels, lengths)

    found = []
    for function in (whole, torch.compile(whole, fullgraph=True, backend="aot_eager")):
        features = torch.arange(60.0).view(2, 6, 5).requires_grad_()
        loss = function(features)
        found.append((loss.detach(), *torch.autograd.grad(loss, features)))
    torch.testing.assert_close(found[1], found[0])


# --- decoding


@pytest.mark.parametrize("blank", [0, 1])
def test_the_best_path_is_the_likeliest_of_all_paths(blank: int) -> None:
    logits = torch.randn(6, 5, 3)
    for row, found in zip(logits, greedy_decode(logits, blank_id=blank), strict=True):
        frames = row.softmax(-1)
        best = max(
            itertools.product(range(3), repeat=5),
            key=lambda path: math.prod(float(frame[token]) for frame, token in zip(frames, path, strict=True)),
        )
        assert tuple(found) == spelled(best, blank)


def test_greedy_decoding_minds_lengths_and_joins_a_stream() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0, 3]])
    logits = F.one_hot(path, 4).float()
    assert greedy_decode(logits) == [[1, 1, 2, 3]]
    assert greedy_decode(logits, torch.tensor([5])) == [[1, 1, 2]]
    for size in range(1, 10):
        stream = GreedyStream()
        parts = [stream.push(part) for part in logits[0].split(size)]
        assert [token for part in parts for token in part] == [1, 1, 2, 3]


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("time", [1, 4, 6])
def test_a_wide_beam_finds_every_text_with_its_probability(time: int, blank: int) -> None:
    for row in torch.randn(3, time, 3) * 2:
        wanted = text_probabilities(row, blank)
        (found,) = prefix_beam_search(row[None], blank_id=blank, beam_size=1000)
        assert {text.tokens for text in found} == set(wanted)
        for text in found:
            assert text.log_prob == pytest.approx(math.log(wanted[text.tokens]), abs=1e-5)
        assert [text.log_prob for text in found] == sorted((text.log_prob for text in found), reverse=True)


def test_the_beam_finds_a_likelier_text_than_the_best_path() -> None:
    logits = torch.tensor([[[0.4, 0.35, 0.25], [0.4, 0.35, 0.25]]]).log()  # blank, then 1 in three ways: 0.4025
    assert greedy_decode(logits) == [[]]
    best = prefix_beam_search(logits, beam_size=4)[0][0]
    assert best.tokens == (1,) and math.exp(best.log_prob) == pytest.approx(0.35 * 0.35 + 2 * 0.4 * 0.35)


def test_a_narrow_beam_never_claims_more_than_there_is() -> None:
    for row in torch.randn(20, 6, 3):
        exact = text_probabilities(row, 0)
        for text in prefix_beam_search(row[None], beam_size=2, top_tokens=2)[0]:
            assert math.exp(text.log_prob) <= exact[text.tokens] * (1 + 1e-5)


def test_beam_search_minds_lengths_and_refuses_nonsense() -> None:
    logits = torch.randn(2, 6, 3)
    short = prefix_beam_search(logits, torch.tensor([3, 0]), beam_size=5)
    assert short[0] == prefix_beam_search(logits[:1, :3], beam_size=5)[0]
    assert [(text.tokens, text.log_prob) for text in short[1]] == [((), 0.0)]
    for call in (
        lambda: prefix_beam_search(logits, beam_size=0),
        lambda: prefix_beam_search(logits[0]),
        lambda: prefix_beam_search(logits, torch.tensor([7, 1])),
        lambda: greedy_decode(logits, torch.tensor([-1, 1])),
        lambda: greedy_decode(logits, torch.tensor([1])),
    ):
        with pytest.raises(ModelError):
            call()
