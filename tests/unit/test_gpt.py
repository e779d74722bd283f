"""The GPT template: sizes, start weights, gradients, refusals. That its logits are right: tests/parity/test_gpt2.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build, model_config
from deepseek.models.factory import template_of
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.train.config import TrainConfig
from tests.toy_gpt import toy_config, toy_gpt


def test_every_weight_starts_as_documented() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=512, max_length=128, num_layers=4, d_model=128, num_heads=4))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            wanted = 0.02 / math.sqrt(8) if name.endswith(("out.weight", "down.weight")) else 0.02
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.05), name
            assert abs(float(parameter.detach().mean())) < 0.001, name


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, max_length=64, num_layers=2, d_model=64))
    ids = torch.randint(500, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), torch.randint(500, (4 * 64,)))
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tie_embeddings": False}, {"gradient_checkpointing": True}])
def test_every_weight_gets_a_gradient(changes: dict[str, bool]) -> None:
    model = toy_gpt(**changes).train()
    model(torch.randint(48, (2, 24))).logsumexp(-1).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_gradient_checkpointing_changes_no_gradient_not_even_with_dropout() -> None:
    ids, gradients = torch.randint(48, (2, 10)), []
    for switch in (False, True):
        model = toy_gpt(dropout=0.3).train()
        model.config.gradient_checkpointing = switch
        torch.manual_seed(5)
        model(ids).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def test_tied_and_untied_output_layers() -> None:
    tied, untied = GPT(toy_config()), GPT(toy_config(tie_embeddings=False))
    assert tied.lm_head.weight is tied.token_embedding.weight
    assert untied.lm_head.weight is not untied.token_embedding.weight


def test_a_text_of_full_length_fits_and_one_more_token_does_not() -> None:
    model = toy_gpt()
    assert model(torch.zeros(1, 24, dtype=torch.int64)).shape == (1, 24, 48)
    with pytest.raises(ModelError) as caught:
        model(torch.zeros(1, 25, dtype=torch.int64))
    assert "25 tokens" in str(caught.value) and "max_length = 24" in str(caught.value)
    cache = model.new_cache(1, 40)
    model(torch.zeros(1, 20, dtype=torch.int64), cache=cache)
    with pytest.raises(ModelError, match="25 tokens"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)


def test_example_inputs_fit_the_model_and_are_always_the_same() -> None:
    for config in (toy_config(), toy_config(max_length=3, vocab_size=2)):
        model = GPT(config)
        first, again = model.example_inputs(3), model.example_inputs(3)
        assert first["input_ids"].shape == (3, min(16, config.max_length))
        assert torch.equal(first["input_ids"], again["input_ids"])
        assert model(**first).shape[-1] == config.vocab_size


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"d_model": 100, "num_heads": 30}, "nearest that fits: num_heads 25"),
        ({"num_heads": 0}, "greater than or equal to 1"),
        ({"vocab_size": 0}, "'vocab_size' is 0"),
        ({"max_length": 10**9}, "'max_length' is 1000000000"),
        ({"dropout": 1.0}, "less than 1"),
        ({"n_layers": 3}, "did you mean 'num_layers'"),
        ({"d_model": 64.0}, "integer"),
    ],
)
def test_sizes_that_make_no_model_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPTConfig(**values)


def test_the_number_of_heads_follows_from_the_width() -> None:
    assert [GPTConfig(d_model=width).heads for width in (64, 768, 1536, 100)] == [1, 12, 24, 1]
    assert GPTConfig(d_model=100, num_heads=5).heads == 5


def test_models_are_built_from_values_names_and_files(tmp_path: Path) -> None:
    values = {"name": "GPT", "vocab_size": 20, "max_length": 8, "num_layers": 1, "d_model": 8}
    assert isinstance(build(values), GPT) and isinstance(
        build(GPTConfig(**{k: v for k, v in values.items() if k != "name"})), GPT
    )
    path = tmp_path / "model.yaml"
    for text in ("name: GPT\nnum_layers: 3\n", "model:\n  name: GPT\n  num_layers: 3\n"):
        path.write_text(text)
        assert model_config(path)[1] == GPTConfig(num_layers=3)
    name, config = model_config({"name": "gpt2-small", "vocab_size": 100})
    assert name == "GPT" and isinstance(config, GPTConfig) and (config.vocab_size, config.num_layers) == (100, 12)
    assert template_of(config) == "GPT"


def test_errors_in_a_models_file_name_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("model:\n  name: GPT\n  d_model: 32\n  num_layer: 3\n")
    with pytest.raises(ConfigError, match=r"model.yaml:4: unknown key 'num_layer'"):
        model_config(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "gpt"}, "did you mean 'GPT'"),
        ("gpt2-smal", "did you mean 'gpt2-small'"),
        ({"num_layers": 3}, "a model needs a name"),
        ({"name": ["GPT"]}, "a model needs a name"),
        ({"name": "GPT", "layers": 3}, "unknown key 'layers'"),
        ("none.yaml", "does not exist"),
    ],
)
def test_unknown_models_are_refused_with_the_nearest_name(values: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(values)  # type: ignore[arg-type]


def test_a_config_that_is_no_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a model's config"):
        build(TrainConfig())


def test_the_sizes_of_gpt2_have_the_published_number_of_weights() -> None:
    published = {
        "gpt2-small": 124,
        "gpt2-medium": 355,
        "gpt2-large": 774,
        "gpt2-xl": 1558,
    }  # millions, GPT-2's own table
    for name, millions in published.items():
        with torch.device("meta"):
            model = build(name)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
