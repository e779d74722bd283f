"""Our Whisper against `WhisperForConditionalGeneration` of transformers with equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.pretrained.whisper import FAMILY
from deepseek.models.whisper import Whisper, WhisperConfig
from deepseek.nn.positions import sinusoidal_positions
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper")

SIZES: dict[str, dict[str, Any]] = {
    "even": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    "uneven": {"d_model": 24, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 36},
}
HEADS = {"even": (4, 4), "uneven": (2, 3)}


def theirs(name: str = "even", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=83,
        num_mel_bins=10,
        max_source_positions=20,
        max_target_positions=19,
        encoder_attention_heads=HEADS[name][0],
        decoder_attention_heads=HEADS[name][1],
        pad_token_id=80,
        bos_token_id=80,
        eos_token_id=80,
        decoder_start_token_id=81,
        **SIZES[name],
    )
    return noisy(transformers.WhisperForConditionalGeneration(config), seed=seed)


def inputs(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(batch, 10, 40, generator=generator)
    return {"input_features": features, "decoder_input_ids": torch.randint(83, (batch, 13), generator=generator)}


@pytest.mark.parametrize("name", SIZES)
def test_equal_weights_give_equal_logits_gradients_and_files(name: str, tmp_path: Path) -> None:
    ours = check_family(theirs(name), inputs(), tmp_path)
    assert isinstance(ours, Whisper)


@pytest.mark.parametrize("name", SIZES)
def test_greedy_text_is_what_their_logits_say(name: str, tmp_path: Path) -> None:
    model, features = theirs(name), inputs()["input_features"]
    model.save_pretrained(tmp_path)
    ours = Whisper.from_pretrained(tmp_path)
    ids = torch.full((3, 1), 81)
    with torch.no_grad():
        for _ in range(19):
            logits = model(features, decoder_input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(ours.generate(features, eos_id=None), ids)
    eos = int(ids[0, 4])
    ended = ((ids[:, 1:] == eos).cumsum(1) - (ids[:, 1:] == eos).long()) > 0
    wanted = torch.cat([ids[:, :1], ids[:, 1:].masked_fill(ended, 80)], dim=1)
    found = ours.generate(features, eos_id=eos)
    assert torch.equal(found, wanted[:, : found.shape[1]])
    assert bool(ended[:, found.shape[1] - 1 :].all())  # it stopped when every row had ended
    begun = ours.generate(features, 3, decoder_input_ids=ids[:, :5], eos_id=None)
    assert torch.equal(begun, ids[:, :8])


def test_tokens_are_suppressed_by_a_logits_processor(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    ours, features = Whisper.from_pretrained(tmp_path), inputs()["input_features"]
    likeliest = int(ours.generate(features, 1)[0, 1])
    processor = transformers.SuppressTokensLogitsProcessor([likeliest])
    assert int(ours.generate(features, 1, logits_processor=[processor])[0, 1]) != likeliest


def test_the_positions_of_a_new_model_are_theirs() -> None:
    wanted = modeling.sinusoids(20, 32)
    torch.testing.assert_close(sinusoidal_positions(20, 32), wanted, atol=1e-6, rtol=0)


def test_shorter_recordings_of_odd_length_fit_and_longer_ones_do_not() -> None:
    model = build({**tiny(), "max_frames": 31})
    assert model.encode(torch.randn(1, 6, 31)).shape == (1, 16, 8)
    assert model(torch.randn(2, 6, 1), torch.zeros(2, 1, dtype=torch.int64)).shape == (2, 1, 20)
    with pytest.raises(ModelError, match="31"):
        model.encode(torch.randn(1, 6, 32))
    with pytest.raises(ModelError, match="input_features"):
        model.encode(torch.randn(1, 5, 31))
    with pytest.raises(ModelError, match="decoder_input_ids"):
        model(torch.randn(1, 6, 31), torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ModelError, match="max_length = 8"):
        model.generate(torch.randn(1, 6, 31), 9)
    assert model.generate(torch.randn(1, 6, 31), 8, eos_id=None).shape == (1, 9)
    with pytest.raises(ModelError, match="even number of frames"):
        FAMILY.config_to(model.config)


def tiny() -> dict[str, Any]:
    heads = {"encoder_heads": 2, "decoder_heads": 2, "encoder_d_ff": 8, "decoder_d_ff": 8}
    sizes = {"vocab_size": 20, "num_mels": 6, "max_length": 8, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    return {"name": "Whisper", "pad_id": 17, "eos_id": 18, "start_id": 19, **heads, **sizes}


def test_refusals_name_the_nearest_value() -> None:
    for wrong, nearest in (
        ({"d_model": 9}, "d_model 10"),
        ({"d_model": 10, "encoder_heads": 4}, "num_heads 5"),
        ({"vocab_size": 100}, "99"),
    ):
        with pytest.raises(ConfigError, match=nearest):
            WhisperConfig(**wrong)
    with pytest.raises(ModelError, match="relu"):
        FAMILY.config_from({"activation_function": "relu"})


@pytest.mark.parametrize(("size", "weights"), [("whisper-tiny", 37_184_640), ("whisper-base", 71_825_920)])
def test_published_sizes(size: str, weights: int) -> None:
    with torch.device("meta"):
        model = build(size)
    assert sum(p.numel() for p in model.parameters()) == weights  # the encoder's positions are fixed: not counted
