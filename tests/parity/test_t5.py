"""Our T5 against `T5ForConditionalGeneration` of transformers with equal weights: logits, gradients, greedy text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.pretrained.t5 import FAMILY
from deepseek.models.t5 import T5, T5Config
from deepseek.nn.relative_bias import distance_bucket
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.t5.modeling_t5")

SIZES: dict[str, dict[str, Any]] = {
    "1.0": {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 48},
    "1.1": {"d_model": 24, "d_kv": 10, "num_heads": 3, "num_layers": 1, "num_decoder_layers": 3, "d_ff": 40},
    "short distances": {"d_model": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "d_ff": 24},
}


def theirs(name: str = "1.0", seed: int = 0) -> Any:
    gated = name == "1.1"
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9} if "short" in name else {}
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=83,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
        **SIZES[name],
        **buckets,
    )
    model = transformers.T5ForConditionalGeneration(config)
    if gated:  # transformers 5 ties a new model anyway; flan-t5 has an output layer of its own
        model.lm_head.weight = nn.Parameter(torch.randn(83, config.d_model) * 0.2)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return noisy(model, seed=seed)


def inputs(batch: int = 3, time: int = 21) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 83, (batch, time), generator=generator)
    mask = torch.arange(time) < torch.tensor([time, time - 4, 1])[:batch, None]
    answer = torch.randint(2, 83, (batch, 17), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": answer, "attention_mask": mask.long()}


@pytest.mark.parametrize("name", SIZES)
def test_equal_weights_give_equal_logits_gradients_and_files(name: str, tmp_path: Path) -> None:
    ours = check_family(theirs(name), inputs(), tmp_path)
    assert isinstance(ours, T5)
    assert (ours.lm_head.weight is ours.token_embedding.weight) == (name != "1.1")


def test_hub_files_of_version_1_1_say_it_with_tied_embeddings() -> None:
    hub = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    assert FAMILY.config_from(hub)["tie_embeddings"] is False
    assert FAMILY.config_from({})["tie_embeddings"] is True
    with pytest.raises(ModelError, match="gated-silu"):
        FAMILY.config_from({"feed_forward_proj": "gated-silu"})


@pytest.mark.parametrize("name", SIZES)
def test_greedy_text_is_theirs(name: str, tmp_path: Path) -> None:
    for seed in range(2):
        model, given = theirs(name, seed), inputs()
        del given["decoder_input_ids"]
        model.save_pretrained(tmp_path)
        ours = T5.from_pretrained(tmp_path)
        free = ours.generate(given["input_ids"], 12, attention_mask=given["attention_mask"], eos_id=None)
        eos = int(free[0, 4])  # a token that does occur, so that rows end at different places
        # without their cache, which counts its layers by the encoder's
        ids = {"eos_token_id": eos, "pad_token_id": 0}
        wanted = model.generate(**given, do_sample=False, use_cache=False, max_new_tokens=12, **ids)
        found = ours.generate(given["input_ids"], 12, attention_mask=given["attention_mask"], eos_id=eos)
        assert torch.equal(found, wanted)


def test_cached_decoding_answers_as_decoding_anew_does() -> None:
    torch.manual_seed(0)
    ours = T5(T5Config(vocab_size=50, encoder_layers=1, decoder_layers=2, d_model=16, num_heads=2, head_dim=8, d_ff=32))
    ids = torch.randint(2, 50, (2, 9))
    found = ours.generate(ids, 10, eos_id=None, decoder_input_ids=torch.tensor([[3, 4], [5, 6]]))
    assert ours.training
    anew = found[:, :2]
    for _ in range(10):
        anew = torch.cat([anew, ours.eval()(ids, anew)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, anew)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_theirs(bidirectional: bool, buckets: int, farthest: int) -> None:
    offset = torch.arange(-2 * farthest, 2 * farthest + 1)
    wanted = modeling.T5Attention._relative_position_bucket(offset, bidirectional, buckets, farthest)
    found = distance_bucket(offset, buckets, farthest, bidirectional=bidirectional)
    assert torch.equal(found, wanted)
    assert int(found.min()) == 0
    assert int(found.max()) == buckets - 1


@pytest.mark.parametrize(("size", "weights"), [("t5-small", 60_506_624), ("t5-base", 222_903_552)])
def test_published_sizes(size: str, weights: int) -> None:
    with torch.device("meta"):
        model = build(size)
    assert sum(p.numel() for p in model.parameters()) == weights


def test_refusals_name_the_argument_or_the_nearest_value() -> None:
    model = build({"name": "T5", "vocab_size": 20, "d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 8})
    good = torch.ones(1, 4, dtype=torch.int64)
    for wrong, name in (
        ({"input_ids": good[0], "decoder_input_ids": good}, "input_ids"),
        ({"input_ids": good, "decoder_input_ids": good + 19}, "decoder_input_ids"),
        ({"input_ids": good, "decoder_input_ids": good, "attention_mask": good[:, :3]}, "attention_mask"),
    ):
        with pytest.raises(ModelError, match=name):
            model(**wrong)
    for wrong, nearest in (
        ({"num_buckets": 30}, "num_buckets 32"),
        ({"max_distance": 16}, "max_distance 17"),
        ({"vocab_size": 10, "eos_id": 12}, "eos_id 9"),
    ):
        with pytest.raises(ConfigError, match=nearest):
            T5Config(**wrong)
