"""FT-Transformer: against a reference written from the paper's formulas, its published size, its columns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models.factory import build
from deepseek.models.ft_transformer import FTTransformer, FTTransformerConfig

SIZES = {"num_numeric": 3, "cardinalities": [4, 2], "num_labels": 5, "num_layers": 3, "d_model": 12, "num_heads": 3}


def toy(**changes: object) -> FTTransformer:
    torch.manual_seed(5)
    model = FTTransformer(FTTransformerConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.double().eval()


def reference(model: FTTransformer, numeric: Tensor, categorical: Tensor) -> Tensor:
    """The paper's section 3.3, one token at a time, attention by torch's own module, the class token last."""
    tokenizer, config = model.tokenizer, model.config
    tokens = []
    for column in range(config.num_numeric):
        tokens.append(
            tokenizer.numeric_bias[column] + numeric[:, column : column + 1] * tokenizer.numeric_weight[column]
        )
    start = 0
    for column, size in enumerate(config.cardinalities):
        table = tokenizer.category_embedding.weight[start : start + size]
        one_hot = F.one_hot(categorical[:, column], size).double()
        tokens.append(tokenizer.category_bias[column] + one_hot @ table)
        start += size
    x = torch.stack([*tokens, model.class_token.expand(len(numeric), -1)], dim=1)
    for layer, block in enumerate(model.blocks):
        h = x if layer == 0 else block.attention_norm(x)
        x = x + torch_attention(block.attention, config.num_heads)(h, h, h)[0]
        h, ff = block.feed_forward_norm(x), block.feed_forward
        x = x + ff.down(ff.up(h) * ff.gate(h).clamp(min=0))
    return model.head(model.norm(x[:, -1]).relu())


def torch_attention(ours: nn.Module, num_heads: int) -> nn.MultiheadAttention:
    parts = [ours.query, ours.key, ours.value]
    theirs = nn.MultiheadAttention(ours.query.in_features, num_heads, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in parts]))
    theirs.out_proj = ours.out
    return theirs.eval()


def table(rows: int = 4) -> tuple[Tensor, Tensor]:
    categorical = torch.stack([torch.randint(size, (rows,)) for size in SIZES["cardinalities"]], dim=1)
    return torch.randn(rows, 3, dtype=torch.float64), categorical


@torch.no_grad()
def test_equals_the_papers_formulas() -> None:
    model, (numeric, categorical) = toy(), table()
    torch.testing.assert_close(
        model(numeric, categorical), reference(model, numeric, categorical), atol=1e-9, rtol=1e-9
    )


def test_default_size_is_the_papers() -> None:
    """The paper gives 929K weights for 100 numeric columns."""
    with torch.device("meta"):
        model = build("ft-transformer-default")
    assert round(sum(p.numel() for p in model.parameters()) / 1000) == 929


def test_columns_have_no_order() -> None:
    model, (numeric, categorical) = toy(), table()
    wanted = model(numeric, categorical)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        for weight in (model.tokenizer.numeric_weight, model.tokenizer.numeric_bias):
            weight.copy_(weight[order].clone())
    torch.testing.assert_close(model(numeric[:, order], categorical), wanted)


@pytest.mark.parametrize(("kept", "dropped"), [("numeric", "categorical"), ("categorical", "numeric")])
def test_tables_of_one_kind_of_column(kept: str, dropped: str) -> None:
    changes: dict[str, object] = {"categorical": {"cardinalities": []}, "numeric": {"num_numeric": 0}}[dropped]
    model = toy(**changes)
    inputs = model.example_inputs(2)
    assert list(inputs) == [kept]
    assert model(**inputs).shape == (2, 5)
    with pytest.raises(ModelError, match=f"{kept} is missing"):
        model()


@pytest.mark.parametrize("code", [-1, 4])
def test_unknown_category_is_named_with_its_column(code: int) -> None:
    model, (numeric, categorical) = toy(), table()
    categorical[1, 0] = code
    with pytest.raises(ModelError, match="column 0") as caught:
        model(numeric, categorical)
    assert caught.value.wanted == "0 to 3" and str(code) in caught.value.found


@pytest.mark.parametrize("name", ["numeric", "categorical"])
def test_wrong_number_of_columns_and_wrong_kind_are_named(name: str) -> None:
    inputs = dict(zip(("numeric", "categorical"), table(), strict=True))
    with pytest.raises(ModelError, match=name):
        toy()(**{**inputs, name: inputs[name][:, :-1]})
    with pytest.raises(ModelError, match="category numbers"):
        toy()(inputs["numeric"], inputs["categorical"].double())


def test_initialisation_is_the_papers() -> None:
    model = FTTransformer(FTTransformerConfig(**SIZES))
    bound = 1 / math.sqrt(12)
    for weight in model.tokenizer.parameters():
        assert float(weight.detach().abs().max()) <= bound
    assert float(model.class_token.detach().abs().max()) <= bound
    assert all(not block.attention.query.bias.any() for block in model.blocks)
    assert all(block.feed_forward.up.bias.any() for block in model.blocks)


def test_impossible_settings_name_the_nearest_that_fits() -> None:
    with pytest.raises(ConfigError, match="num_heads 6"):
        FTTransformerConfig(num_numeric=1, d_model=12, num_heads=7)
    with pytest.raises(ConfigError, match="no columns"):
        FTTransformerConfig()
    with pytest.raises(ConfigError, match="cardinalities"):
        FTTransformerConfig(cardinalities=[3, 0])
