"""The Conformer: the documented YAML, published sizes, padding, streaming, variants, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.conformer import Conformer, ConformerConfig
from deepseek.models.conformer_stream import ConformerStream
from deepseek.nn.conv_subsampling import subsampled_length
from deepseek.nn.dynamic_conv import DynamicConvAttention
from deepseek.nn.gradient_reset_gate import GradientResetGate

MELS, VOCAB = 12, 10
VARIANTS = {
    "plain": {},
    "layer norm": {"conv_norm": "layer"},
    "dynamic convolution": {"attention": "dynamic_conv", "dynamic_kernel": 4},
    "reset gate": {"reset_gate": True},
    "all": {"attention": "dynamic_conv", "dynamic_kernel": 5, "reset_gate": True, "conv_norm": "layer"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def toy(decoder: dict[str, object] | None = None, checkpointing: bool = False, **encoder: object) -> Conformer:
    """Return a small Conformer whose weights and batch-norm statistics are not those of a fresh one."""
    sizes = {"num_mels": MELS, "num_layers": 2, "d_model": 16, "attention_heads": 2, "conv_kernel": 5, **encoder}
    config = {"encoder": sizes, "decoder": {"vocab_size": VOCAB, **(decoder or {})}}
    torch.manual_seed(3)
    model = Conformer(ConformerConfig(**config, gradient_checkpointing=checkpointing))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.add_(
                    torch.randn_like(value).abs() * 0.1 if "running_var" in name else torch.randn_like(value) * 0.1
                )
    return model.eval()


def features(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, MELS, generator=torch.Generator().manual_seed(frames))


def streamed(model: Conformer, recording: Tensor, pieces: list[int]) -> Tensor:
    """Return the logits of a recording that comes in pieces of the given sizes, over and over."""
    stream, found, start, number = ConformerStream(model, recording.shape[0]), [], 0, 0
    while start < recording.shape[1]:
        piece = pieces[number % len(pieces)]
        found.append(stream.push(recording[:, start : start + piece]))
        start, number = start + piece, number + 1
    return torch.cat([*found, stream.finish()], dim=1)


# --- building


def test_the_documented_yaml_builds(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(
        "model:\n  name: Conformer\n"
        "  encoder:\n    num_layers: 12\n    d_model: 512\n    attention_heads: 8\n"
        "  decoder:\n    vocab_size: 5000\n    embedding_dim: 512\n"
    )
    with torch.device("meta"):
        model = build(path)
    assert isinstance(model, Conformer) and model.decoder is not None
    assert len(model.encoder.blocks) == 12 and model.encoder.blocks[0].attention.num_heads == 8  # type: ignore[union-attr]
    assert model.ctc_head.weight.shape == (5000, 512) and model.decoder.embedding.weight.shape == (5000, 512)


@pytest.mark.parametrize(
    ("size", "layers", "width", "heads", "millions", "off"),
    [("s", 16, 144, 4, 10.3, 0.01), ("m", 16, 256, 4, 30.7, 0.06), ("l", 17, 512, 8, 118.8, 0.02)],
)
def test_published_sizes(size: str, layers: int, width: int, heads: int, millions: float, off: float) -> None:
    """Table 1 of the paper; `off`: how far an attention decoder in place of its LSTM transducer moves the total."""
    with torch.device("meta"):
        model = build(f"conformer-{size}")
    assert isinstance(model, Conformer)
    encoder = model.config.encoder
    assert (encoder.num_layers, encoder.d_model, encoder.attention_heads, encoder.conv_kernel) == (
        layers,
        width,
        heads,
        32,
    )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=off)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"encoder": {"d_model": 512, "attention_heads": 7}}, "nearest that fits: attention_heads 8"),
        ({"encoder": {"d_model": 15}}, "multiple of 2"),
        ({"encoder": {"chunk_size": 4}}, "nearest that fits: causal true"),
        ({"encoder": {"causal": True, "dynamic_chunks": True}}, "nearest that fits: chunk_size 16"),
        ({"encoder": {"causal": True, "left_chunks": 2}}, "nearest that fits: chunk_size 16"),
        ({"encoder": {"attention": "dynamic"}}, "'self' or 'dynamic_conv'"),
        ({"encoder": {"n_layers": 2}}, "did you mean 'num_layers'"),
        ({"decoder": {"vocab_size": 10, "end_id": 10}}, "nearest that fits: end_id 9"),
        ({"decoder": {"vocab_size": 10, "blank_id": 9}}, "blank_id and end_id are both 9"),
        ({"decoder": {"embedding_dim": 30, "attention_heads": 4}}, "nearest that fits: attention_heads"),
    ],
)
def test_wrong_combinations_name_the_nearest_that_fits(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ConformerConfig(**values)


# --- forward


@pytest.mark.parametrize("frames", [7, 8, 9, 10, 11, 30, 67])
def test_lengths_are_those_of_the_frames(frames: int) -> None:
    out = toy()(features(frames))
    assert out.lengths.tolist() == [out.ctc_logits.shape[1]] == [(frames - 3) // 4]
    assert out.decoder_logits is None


@every_variant
@pytest.mark.parametrize("chunks", [{}, {"causal": True, "chunk_size": 3, "left_chunks": 0}])
def test_padding_changes_nothing(variant: str, chunks: dict[str, object]) -> None:
    model = toy(decoder={"embedding_dim": 8}, **VARIANTS[variant], **chunks)
    lengths, ids = [40, 67, 7], torch.tensor([[9, 1, 2], [9, 3, 3], [9, 0, 0]])
    batch = features(67, 3)
    together = model(batch, torch.tensor(lengths), ids)
    for row, frames in enumerate(lengths):
        alone = model(batch[row : row + 1, :frames], None, ids[row : row + 1])
        time = subsampled_length(frames)
        assert int(together.lengths[row]) == time == alone.ctc_logits.shape[1]
        torch.testing.assert_close(together.ctc_logits[row, :time], alone.ctc_logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.decoder_logits[row], alone.decoder_logits[0], atol=1e-5, rtol=1e-5)


def test_the_decoder_looks_back_only_and_reads_the_frames() -> None:
    model, recording = toy(decoder={"embedding_dim": 8}), features(40)
    ids = torch.tensor([[9, 1, 2, 3]])
    first, other = model(recording, None, ids), model(recording, None, torch.tensor([[9, 1, 5, 6]]))
    torch.testing.assert_close(first.decoder_logits[:, :2], other.decoder_logits[:, :2])
    assert not torch.allclose(first.decoder_logits[:, 2:], other.decoder_logits[:, 2:])
    assert not torch.allclose(first.decoder_logits, model(features(40) + 1, None, ids).decoder_logits)


@every_variant
def test_every_weight_gets_a_gradient(variant: str) -> None:
    model = toy(decoder={"embedding_dim": 8}, **VARIANTS[variant]).train()
    out = model(features(67, 2), torch.tensor([67, 50]), torch.tensor([[9, 1], [9, 2]]))
    (out.ctc_logits.logsumexp(-1).sin().sum() + out.decoder_logits.logsumexp(-1).sin().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_changes_no_gradient_not_even_with_dropout() -> None:
    found = []
    for enabled in (False, True):
        model = toy(checkpointing=enabled, **VARIANTS["all"]).train()
        torch.manual_seed(5)
        model(features(40, 2)).ctc_logits.square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


# --- streaming


@every_variant
@pytest.mark.parametrize("left_chunks", [None, 0, 2])
@pytest.mark.parametrize("pieces", [[1], [5, 17, 2], [1000]])
def test_a_stream_answers_as_the_whole_recording_does(variant: str, left_chunks: int | None, pieces: list[int]) -> None:
    model = toy(causal=True, chunk_size=3, left_chunks=left_chunks, **VARIANTS[variant])
    for frames in (6, 7, 15, 62):
        recording = features(frames, 2)
        found = streamed(model, recording, pieces)
        if frames < 7:
            assert found.shape == (2, 0, VOCAB)
            continue
        with torch.no_grad():
            torch.testing.assert_close(found, model(recording).ctc_logits, atol=1e-5, rtol=1e-5)


def test_the_same_weights_run_with_and_without_chunks() -> None:
    model, recording = toy(causal=True, chunk_size=4), features(90)
    chunked = model(recording).ctc_logits
    model.config.encoder.chunk_size = None
    whole = model(recording).ctc_logits
    assert not torch.allclose(chunked, whole, atol=1e-3)
    model.config.encoder.chunk_size = 1000  # one chunk: as good as none
    torch.testing.assert_close(model(recording).ctc_logits, whole, atol=1e-5, rtol=1e-5)
    assert streamed(model, recording, [10]).shape == whole.shape


def test_dynamic_chunks_train_for_whole_recordings_and_for_chunks() -> None:
    static = {"causal": True, "left_chunks": None, "dropout": 0.0, "conv_norm": "layer"}
    model = toy(**static, chunk_size=2, dynamic_chunks=True)
    recording, lengths = features(67, 2), torch.tensor([67, 50])
    wanted = {None: toy(**static, chunk_size=None)(recording, lengths).ctc_logits}
    for size in (1, 2, 3, 4):
        wanted[size] = toy(**static, chunk_size=size)(recording, lengths).ctc_logits
    torch.testing.assert_close(model(recording, lengths).ctc_logits, wanted[None])
    model.train()
    seen = []
    for seed in range(40):
        torch.manual_seed(seed)
        found = model(recording, lengths).ctc_logits
        seen += [size for size, logits in wanted.items() if torch.allclose(found, logits, atol=1e-5)]
    assert set(seen) == set(wanted) and 10 < seen.count(None) < 30 and len(seen) == 40
    model.eval()
    alone = torch.cat([streamed(model, recording[:1], [9]), toy(**static, chunk_size=None)(recording[:1])[0]])
    torch.testing.assert_close(alone[:1], toy(**static, chunk_size=2)(recording[:1]).ctc_logits)
    assert not torch.allclose(alone[0], alone[1])


@every_variant
def test_look_ahead_is_bounded_by_the_chunk_however_deep_the_model(variant: str) -> None:
    model = toy(causal=True, chunk_size=3, num_layers=4, **VARIANTS[variant])
    recording = features(80)
    before = model(recording).ctc_logits
    for frame in range(0, before.shape[1], 2):
        end = (frame // 3 + 1) * 3  # the first encoder frame of the next chunk
        last_seen = 4 * (end - 1) + 6  # the last feature frame that this chunk reads
        changed = recording.clone()
        changed[:, last_seen + 1 :] += 1
        torch.testing.assert_close(model(changed).ctc_logits[:, :end], before[:, :end], atol=1e-5, rtol=1e-5)
        if end <= before.shape[1]:  # the last frame of a whole chunk is seen by all of it
            changed[:, last_seen] += 5
            assert not torch.allclose(model(changed).ctc_logits[:, frame], before[:, frame], atol=1e-4)


def test_a_long_stream_keeps_no_more_than_a_short_one() -> None:
    model = toy(causal=True, chunk_size=3, left_chunks=2, **VARIANTS["all"])
    stream, sizes = ConformerStream(model), []
    for _ in range(30):
        stream.push(features(12))
        sizes.append(stream.state_bytes)
    assert len(set(sizes[5:])) == 1 and stream.chunk_frames == 4 * 2 + 7
    unbounded = ConformerStream(toy(causal=True, chunk_size=3))
    grown = []
    for _ in range(5):
        unbounded.push(features(12))
        grown.append(unbounded.state_bytes)
    assert grown == sorted(set(grown))


def test_what_a_stream_keeps_between_chunks_matters() -> None:
    """The ablation of the streaming block: each part of its state, thrown away, changes the answer."""
    model, recording = toy(causal=True, chunk_size=3, left_chunks=2, **VARIANTS["all"]), features(60)
    with torch.no_grad():
        whole = model(recording).ctc_logits

    def forgetting(part: str) -> Tensor:
        stream, found = ConformerStream(model), []
        for start in range(0, 60, 12):
            fresh = [block.start(1) for block in model.encoder.blocks]  # type: ignore[operator]
            if part:
                pairs = zip(stream.states, fresh, strict=True)
                stream.states = [old._replace(**{part: getattr(new, part)}) for old, new in pairs]
            found.append(stream.push(recording[:, start : start + 12]))
        return torch.cat([*found, stream.finish()], dim=1)

    torch.testing.assert_close(forgetting(""), whole, atol=1e-5, rtol=1e-5)
    for part in ("convolution", "memory"):
        assert (forgetting(part) - whole).abs().max() > 1e-3, part
    model.config.encoder.left_chunks = 0  # no keys and values of other chunks
    with torch.no_grad():
        assert (model(recording).ctc_logits - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("encoder", "training", "words"),
    [
        ({}, False, "the model can't stream"),
        ({"causal": True}, False, "the model can't stream"),
        ({"causal": True, "chunk_size": 4}, True, "training mode"),
    ],
)
def test_models_that_cannot_stream_are_refused(encoder: dict[str, object], training: bool, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ConformerStream(toy(**encoder).train(training))


def test_a_stream_refuses_other_shapes_and_frames_after_its_end() -> None:
    stream = ConformerStream(toy(causal=True, chunk_size=4))
    with pytest.raises(ModelError, match="input_features"):
        stream.push(features(10, 2))
    stream.push(features(10))
    stream.finish()
    for call in (lambda: stream.push(features(10)), stream.finish):
        with pytest.raises(ModelError, match="has ended"):
            call()


# --- variants and refusals


def test_the_blocks_are_there_when_asked_for() -> None:
    plain, all_of_them = toy(), toy(**VARIANTS["all"])
    for kind in (DynamicConvAttention, GradientResetGate):
        assert not any(isinstance(module, kind) for module in plain.modules())
        assert sum(isinstance(module, kind) for module in all_of_them.modules()) == 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input_features": torch.zeros(1, 40)}, "input_features"),
        ({"input_features": torch.zeros(1, 40, MELS + 1)}, "input_features"),
        ({"input_features": torch.zeros(1, 6, MELS)}, "6 frames"),
        ({"input_features": torch.zeros(1, 40, MELS), "lengths": torch.tensor([41])}, "lengths"),
        ({"input_features": torch.zeros(1, 40, MELS), "lengths": torch.tensor([3])}, "7 to 40"),
        ({"input_features": torch.zeros(1, 40, MELS), "lengths": torch.tensor([40, 40])}, "lengths"),
        (
            {"input_features": torch.zeros(1, 40, MELS), "decoder_input_ids": torch.tensor([[VOCAB]])},
            "decoder_input_ids",
        ),
        (
            {"input_features": torch.zeros(1, 40, MELS), "decoder_input_ids": torch.tensor([[1], [1]])},
            "decoder_input_ids",
        ),
    ],
)
def test_wrong_inputs_are_named(inputs: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        toy(decoder={"embedding_dim": 8})(**inputs)


def test_a_single_frame_cannot_train_batch_norm() -> None:
    with pytest.raises(ModelError, match="too small for batch norm"):
        toy().train()(features(7))
    assert toy(conv_norm="layer").train()(features(7)).ctc_logits.shape == (1, 1, VOCAB)


def test_tokens_for_a_model_without_decoder_are_refused() -> None:
    with pytest.raises(ModelError, match="no decoder to read it"):
        toy()(features(40), decoder_input_ids=torch.tensor([[1]]))
