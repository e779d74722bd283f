"""Llama and DeepSeekMoE as language models: caches, documents, sizes, balance, errors, compiled with checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models.deepseek_moe import DeepSeekMoE
from deepseek.models.factory import build
from deepseek.models.llama import Llama, LlamaConfig
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.yaml_source import read_yaml

TOYS = Path(__file__).parents[1] / "toys"


def toy(name: str, **changes: Any) -> Any:
    values = read_yaml(TOYS / f"{name}.yaml").value
    assert isinstance(values, dict)
    return build({**values, **changes})


@pytest.fixture(params=["llama", "deepseek_moe"])
def model(request: pytest.FixtureRequest) -> Any:
    found = toy(request.param)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return found.eval()


@pytest.mark.parametrize("parts", [[1] * 12, [5, 1, 1, 5], [4, 8], [12]])
@torch.inference_mode()
def test_a_cached_text_answers_like_the_whole(model: Any, parts: list[int]) -> None:
    ids = torch.randint(96, (2, 12))
    whole, cache = model(ids), model.new_cache(2, 12)
    pieces = [model(part, cache=cache) for part in ids.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert cache.length == 12
    with pytest.raises(ModelError, match="outgrows its cache"):
        model(ids[:, :1], cache=cache)


def test_generate_is_the_likeliest_token_each_time(model: Any) -> None:
    ids = torch.randint(96, (2, 4))
    found, wanted = model.generate(ids, max_new_tokens=6), ids
    for _ in range(6):
        wanted = torch.cat([wanted, model(wanted)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, wanted)


def test_a_latent_cache_is_narrow() -> None:
    cache = toy("deepseek_moe").new_cache(3, 20)
    assert cache.latents.shape == (2, 3, 20, 16 + 4)


def test_latent_attention_with_a_layer_in_place_of_its_own_still_uses_the_cache() -> None:
    model = toy("deepseek_moe").eval()
    ids = torch.randint(96, (1, 9))
    whole = model(ids)
    for block in model.blocks:
        block.attention.kv_up = nn.Sequential(block.attention.kv_up)
    cache = model.new_cache(1, 9)
    with torch.inference_mode():
        pieces = [model(part, cache=cache) for part in ids.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_documents_do_not_see_each_other(model: Any) -> None:
    first, second = torch.randint(96, (1, 7)), torch.randint(96, (1, 5))
    document_ids = torch.tensor([[0] * 7 + [1] * 5])
    packed = model(torch.cat([first, second], dim=1), document_ids=document_ids)
    torch.testing.assert_close(packed, torch.cat([model(first), model(second)], dim=1), atol=1e-4, rtol=1e-4)


def test_the_task_takes_both(model: Any) -> None:
    ids = torch.randint(96, (2, 9))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    whole, chunked = LanguageModeling().loss(model, batch), LanguageModeling(max_logits_bytes=2000).loss(model, batch)
    torch.testing.assert_close(whole.sum, chunked.sum, atol=1e-3, rtol=1e-5)


def test_mixed_precision_is_near_the_exact_answer(model: Any) -> None:
    ids = torch.randint(96, (2, 12))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(ids)
        cache = model.new_cache(2, 12)
        pieces = [model(part, cache=cache) for part in ids.split(6, dim=1)]
    with torch.no_grad():
        wanted = model(ids)
    for logits in (found, torch.cat(pieces, dim=1)):
        assert float((logits.float() - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, "input_ids has the wrong shape"),
        ({"input_ids": torch.full((1, 3), 96)}, "found:  ids 96 to 96"),
        ({"input_ids": torch.zeros(1, 65, dtype=torch.int64)}, "at most max_length = 64"),
        (
            {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "document_ids": torch.zeros(1, 4)},
            "document_ids has the wrong shape",
        ),
    ],
)
def test_wrong_inputs_are_named(model: Any, inputs: dict[str, Tensor], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        model(**inputs)


def test_documents_after_a_cached_text_are_refused(model: Any) -> None:
    cache, ids = model.new_cache(1, 8), torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        model(ids, cache=cache)
        with pytest.raises(ModelError, match="document_ids can't follow"):
            model(ids, document_ids=ids, cache=cache)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 5}, "nearest that fits: num_heads 4, or give head_dim"),
        ({"num_heads": 4, "num_kv_heads": 3}, "nearest that fits: num_kv_heads 2"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_head": 4}, "num_heads"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LlamaConfig(**{"d_model": 32, **changes})


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("llama2-7b", 6_738_415_616),
        ("llama3-8b", 8_030_261_248),
        ("llama3.1-8b", 8_030_261_248),
        ("qwen2-0.5b", 494_032_768),
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v3", 671_026_404_352),
    ],
)
def test_published_sizes_have_the_published_number_of_weights(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", ["llama-tiny", "deepseek-moe-tiny"])
def test_tiny_sizes_run(size: str) -> None:
    model: Any = build(size)
    assert model(**model.example_inputs(2)).shape == (2, 16, 4096)


def test_default_feed_forward_width_is_llamas() -> None:
    assert [LlamaConfig(d_model=width).feed_forward_width for width in (4096, 5120)] == [11008, 13824]


def test_balanced_features_count_and_correct() -> None:
    model = toy("deepseek_moe", num_layers=3)
    assert isinstance(model, DeepSeekMoE)
    ids = torch.randint(96, (2, 10))
    found = model.forward_balanced(ids)
    torch.testing.assert_close(found.features, model.forward_features(ids))
    assert found.load.shape == (2, 8) and found.load.sum(1).tolist() == [2 * 10 * 3] * 2
    assert int(found.dropped) == 0
    found.balance_loss.backward()
    assert all(block.feed_forward.router.weight.grad.abs().sum() > 0 for block in list(model.blocks)[1:])
    model.update_correction_bias(found.load, rate=0.5)
    for block, load in zip(list(model.blocks)[1:], found.load, strict=True):
        wanted = [0.5 if count < 7.5 else -0.5 for count in load.tolist()]
        assert block.feed_forward.router.correction_bias.tolist() == wanted


def test_the_bias_follows_the_load_of_all_micro_batches() -> None:
    model = toy("deepseek_moe", num_layers=3).train()
    assert isinstance(model, DeepSeekMoE) and "expert_load" not in model.state_dict()
    loads = [model.forward_balanced(torch.randint(96, (2, 10))).load for _ in range(2)]
    model.after_step()
    for block, load in zip(list(model.blocks)[1:], sum(loads), strict=True):
        wanted = 1e-3 * torch.sign(load.float().mean() - load)
        torch.testing.assert_close(block.feed_forward.router.correction_bias, wanted)
    assert model.expert_load is not None and int(model.expert_load.sum()) == 0
    model.eval().forward_balanced(torch.randint(96, (2, 10)))
    assert int(model.expert_load.sum()) == 0  # evaluation does not count


def test_balance_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match="no mixture of experts"):
        toy("deepseek_moe", num_dense_layers=2).forward_balanced(torch.zeros(1, 2, dtype=torch.int64))
    plain = toy("deepseek_moe", moe={"num_experts": 4, "top_k": 2, "d_ff": 8})
    with pytest.raises(ModelError, match="correction_bias"):
        plain.update_correction_bias(torch.zeros(1, 4))
    with pytest.raises(ModelError, match="load has the wrong shape"):
        toy("deepseek_moe").update_correction_bias(torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["llama", "deepseek_moe"])
def test_compiled_training_with_checkpointing_is_the_plain_one(name: str) -> None:
    plain, compiled = toy(name), toy(name, gradient_checkpointing=True)
    compiled.load_state_dict(plain.state_dict())
    ids = torch.randint(96, (2, 8))
    plain(ids).square().sum().backward()
    torch.compile(compiled, fullgraph=True, backend="aot_eager")(ids).square().sum().backward()
    for (key, wanted), found in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, atol=1e-4, rtol=1e-3, msg=key)


def test_llama_keeps_its_pieces() -> None:
    model = toy("llama", qkv_bias=True, out_bias=True, feed_forward_bias=True, tie_embeddings=True, rope_scaling=None)
    assert isinstance(model, Llama) and model.lm_head.weight is model.token_embedding.weight
    biases = {name.rpartition("blocks.0.")[2] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert {"attention.query.bias", "attention.out.bias", "feed_forward.down.bias"} <= biases
