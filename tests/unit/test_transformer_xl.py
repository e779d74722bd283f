"""Transformer-XL: its attention against the paper's formula, its memory against one pass, its cost, its training."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deepseek
from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.transformer_xl import TransformerXL, TransformerXLConfig
from deepseek.nn.positions import relative_position_encoding
from deepseek.nn.relative_attention import RelativeAttention, relative_shift


def tiny(**changes: object) -> TransformerXL:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "memory_length": 8}
    model = TransformerXL(TransformerXLConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for scores that differ
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_the_encoding_is_the_published_one_and_public() -> None:
    pos = torch.tensor([0.0, 1.0, 2.5, 300.0, -4.0])
    found = deepseek.nn.relative_position_encoding(pos, 6)
    assert found.shape == (5, 6)
    for row, position in zip(found, pos.tolist(), strict=True):
        angles = [position / 10000 ** (2 * i / 6) for i in range(3)]
        wanted = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row.tolist() == pytest.approx(wanted, abs=3e-5)
    with pytest.raises(ModelError, match="even"):
        relative_position_encoding(pos, 5)
    with pytest.raises(ModelError, match="pos"):
        relative_position_encoding(pos[None], 6)


@pytest.mark.parametrize(("time", "key_time"), [(1, 1), (4, 4), (3, 8), (5, 6)])
def test_shifted_scores_stand_at_the_keys_of_their_distances(time: int, key_time: int) -> None:
    scores = torch.randn(2, 3, time, key_time)
    shifted = relative_shift(scores)
    for i in range(time):
        for j in range(key_time - time + i + 1):
            distance = key_time - time + i - j
            assert torch.equal(shifted[..., i, j], scores[..., i, key_time - 1 - distance])


@pytest.mark.parametrize("grad", [True, False], ids=["training kernel", "inference kernel"])
def test_attention_is_the_four_terms_of_the_paper(grad: bool) -> None:
    torch.manual_seed(0)
    time, past, width, heads = 5, 3, 12, 3
    layer, dim = RelativeAttention(width, heads).double(), width // heads
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, memory = torch.randn(2, time, width).double(), torch.randn(2, past, width).double()
    context = torch.cat([memory, x], dim=1)

    def part(weight: Tensor, vector: Tensor, head: int) -> Tensor:
        return (weight @ vector)[head * dim : (head + 1) * dim]

    wanted = torch.zeros(2, time, width).double()
    for row in range(2):
        for i in range(time):
            joined = []
            for head in range(heads):
                query = part(layer.query.weight, context[row, past + i], head)
                scores = []
                for j in range(past + i + 1):
                    key = part(layer.key.weight, context[row, j], head)
                    wave = relative_position_encoding(torch.tensor([past + i - j]), width)[0].double()
                    position = part(layer.position.weight, wave, head)
                    terms = query @ key, query @ position, layer.content_bias[head] @ key, layer.position_bias[head]
                    scores.append(terms[0] + terms[1] + terms[2] + terms[3] @ position)
                weights = (torch.stack(scores) / math.sqrt(dim)).softmax(0)
                values = [part(layer.value.weight, context[row, j], head) for j in range(past + i + 1)]
                joined.append((weights[:, None] * torch.stack(values)).sum(0))
            wanted[row, i] = layer.out.weight @ torch.cat(joined)
    distance = torch.arange(past + time - 1, -1, -1)
    mask = torch.ones(time, past + time, dtype=torch.bool).tril(past)
    with torch.set_grad_enabled(grad):
        found = layer(x, context, relative_position_encoding(distance, width).double(), mask)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_segments_with_memory_are_one_pass_under_a_mask(pre_norm: bool) -> None:
    model, segments, kept = tiny(pre_norm=pre_norm, num_layers=3).eval(), [5, 5, 1, 7, 5], 8
    ids = torch.randint(31, (2, sum(segments)))
    memory, parts = None, []
    for part in ids.split(segments, dim=1):
        logits, memory = model(part, memory)
        parts.append(logits)
    total = ids.shape[1]
    start = torch.repeat_interleave(torch.tensor([0, 5, 10, 11, 18]), torch.tensor(segments))
    place = torch.arange(total)
    mask = (place[None, :] <= place[:, None]) & (place[None, :] >= start[:, None] - kept)
    x = model.token_embedding(ids) * math.sqrt(16)
    encoding = relative_position_encoding(torch.arange(total - 1, -1, -1), 16)
    for block in model.blocks:
        x = block(x, x[:, :0], encoding, mask)
    torch.testing.assert_close(torch.cat(parts, dim=1), model.lm_head(model.norm(x)), atol=1e-5, rtol=1e-5)


def test_memory_keeps_the_newest_tokens_and_no_gradient() -> None:
    model, ids = tiny().train(), torch.randint(31, (3, 6))
    first = model(ids)
    assert first.memory.shape == (2, 3, 6, 16)
    second = model(ids, first.memory)
    assert second.memory.shape == (2, 3, 8, 16)
    assert torch.equal(second.memory[0, :, :2], first.memory[0, :, 4:])
    assert not second.memory.requires_grad
    model.config.memory_length = 0
    assert model(ids, second.memory).memory.shape == (2, 3, 0, 16)
    assert torch.equal(model(ids).logits, first.logits)
    torch.testing.assert_close(model.lm_head(model.forward_features(ids)), first.logits)


def test_generated_text_is_what_one_pass_would_say() -> None:
    model, ids = tiny(memory_length=64).train(), torch.randint(31, (2, 5))
    found = model.generate(ids, 20)
    assert model.training
    wanted = ids
    for _ in range(20):
        wanted = torch.cat([wanted, model.eval()(wanted).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, wanted)
    ended = model.generate(ids, 20, eos_id=int(wanted[0, 7]))
    assert ended[0, :8].tolist() == wanted[0, :8].tolist()
    assert bool((ended[0, 7:] == wanted[0, 7]).all())
    model.config.memory_length = 3
    assert model.generate(torch.randint(31, (1, 50)), 2).shape == (1, 52)  # a text longer than the memory
    with pytest.raises(ModelError, match="input_ids is empty"):
        model.generate(ids[:, :0], 2)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned, in values."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        self.largest = max([self.largest, *(t.untyped_storage().nbytes() // 4 for t in tensors if torch.is_tensor(t))])
        return out


def looking_back(distance: int, layers: int) -> TransformerXL:
    """Return a model by hand: each layer replaces a token by what stood `distance` tokens before it."""
    d_model = 16
    config = TransformerXLConfig(
        vocab_size=8, num_layers=layers, d_model=d_model, num_heads=1, d_ff=1, memory_length=distance, pre_norm=True
    )
    model = TransformerXL(config)
    identity, zero = torch.eye(d_model), torch.zeros(d_model, d_model)
    wave = relative_position_encoding(torch.tensor([distance]), d_model)[0]
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.randn(8, d_model))
        for layer, block in enumerate(model.blocks):
            attention = block.attention
            for name, matrix in (("query", zero), ("key", zero), ("value", identity), ("position", identity)):
                getattr(attention, name).weight.copy_(matrix)
            attention.out.weight.copy_(100 * 20**layer * identity)  # far more than what the stream held
            attention.content_bias.zero_()
            attention.position_bias.copy_(400 * wave)  # the score is largest where the distance's wave is this one
            block.feed_forward.down.weight.zero_()
    return model.eval()


def read(model: TransformerXL, ids: Tensor, segment: int) -> tuple[Tensor, int, int]:
    """Return the last segment's logits, the bytes of the memory after it, and the largest tensor made on the way."""
    memory = None
    with torch.no_grad(), LargestTensor() as mode:
        for part in ids.split(segment, dim=1):
            logits, memory = model(part, memory)
    assert memory is not None
    return logits, memory.numel() * memory.itemsize, mode.largest


def test_sixteen_thousand_tokens_of_context_at_the_cost_of_a_segment() -> None:
    torch.manual_seed(0)
    layers, distance, segment = 8, 2048, 1024
    model = looking_back(distance, layers)
    ids = torch.randint(8, (1, layers * distance + segment))
    logits, state, largest = read(model, ids, segment)
    # the answers in the last segment are the tokens 16,384 before: their vectors are likeliest
    looked_up = F.layer_norm(model.token_embedding.weight, (16,)) @ model.token_embedding.weight.T
    wanted = looked_up.argmax(-1)[ids[:, :segment]]
    assert layers * distance == 16_384
    assert float((logits.argmax(-1) == wanted).float().mean()) > 0.99
    _, shorter_state, shorter_largest = read(model, ids[:, : 4 * segment], segment)
    assert state == shorter_state == layers * distance * 16 * 4
    assert largest == shorter_largest <= 2 * segment * (segment + distance + 1)  # one pass would hold 17,408 x 17,408


def saved_bytes(model: TransformerXL, ids: Tensor, memory: Tensor | None) -> tuple[int, Tensor]:
    """Return what a training step keeps for its backward pass, in bytes, and the memory after it."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(ids, memory)
        output.logits.sum().backward()
    return sum(sizes.values()), output.memory


def test_what_training_keeps_does_not_grow_with_the_text_read_before() -> None:
    model, memory, kept = tiny().train(), None, []
    for _ in range(10):
        size, memory = saved_bytes(model, torch.randint(31, (2, 4)), memory)
        kept.append(size)
    assert kept[0] < kept[2]  # the memory fills up
    assert max(kept[3:]) <= 1.02 * min(kept[3:])


def test_training_goes_on_over_segments_and_uses_the_memory() -> None:
    """A random text of period 12 in segments of 4: only the memory tells what comes next."""
    losses = {}
    for remember in (True, False):
        torch.manual_seed(0)
        config = {"vocab_size": 8, "num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 32, "memory_length": 16}
        model = TransformerXL(TransformerXLConfig(**config))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        late: list[float] = []
        for step in range(20):
            text = torch.randint(8, (32, 12)).repeat(1, 4)
            memory = None
            for start in range(0, 44, 4):
                part, target = text[:, start : start + 4], text[:, start + 1 : start + 5]
                logits, memory = model(part, memory if remember else None)
                loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step >= 17 and start >= 16:
                    late.append(float(loss.detach()))
        losses[remember] = sum(late) / len(late)
    assert losses[False] > 0.9 * math.log(8)
    assert losses[True] < 0.5 * losses[False]


def test_refusals_name_the_argument_or_the_nearest_value() -> None:
    model, ids = tiny(), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ModelError, match="input_ids"):
        model(ids + 31)
    with pytest.raises(ModelError, match="memory"):
        model(ids, torch.zeros(2, 1, 8, 16))
    for wrong, nearest in (({"d_model": 17}, "d_model 18"), ({"d_model": 16, "num_heads": 5}, "num_heads 4")):
        with pytest.raises(ConfigError, match=nearest):
            TransformerXLConfig(**wrong)


def test_the_base_size_has_the_paper_s_151_million_weights() -> None:
    with torch.device("meta"):
        model = build("transformer-xl-base")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(151e6, rel=2e-3)
