"""MLP: against `nn.Sequential`, its widths, its initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.models.factory import build
from deepseek.models.mlp import MLP, MLPConfig


def test_equals_linear_layers_and_activations() -> None:
    model = MLP(MLPConfig(input_shape=[2, 3], hidden_sizes=[5, 4], num_labels=3, activation="tanh")).eval()
    first, second, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    plain = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh(), last)
    features = torch.randn(7, 2, 3)
    torch.testing.assert_close(model(features), plain(features))


def test_no_hidden_layer_is_a_linear_model() -> None:
    model = MLP(MLPConfig(input_shape=[4], hidden_sizes=[], num_labels=2))
    assert [tuple(weight.shape) for weight in model.parameters()] == [(2, 4), (2,)]


def test_zoo_size_has_the_weights_of_its_widths() -> None:
    with torch.device("meta"):
        model = build("mlp-mnist")
    assert sum(p.numel() for p in model.parameters()) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_variance_stays_the_same_through_depth(activation: str) -> None:
    widths = [512] * 12
    model = MLP(MLPConfig(input_shape=[512], hidden_sizes=widths, activation=activation))
    features = torch.randn(64, 512) * (1.0 if activation == "relu" else 0.1)
    spread = float(model.forward_features(features).detach().std() / features.std())
    assert 0.3 < spread < 3


def test_norms_and_dropout_stand_before_and_after_the_activation() -> None:
    model = MLP(MLPConfig(input_shape=[4], hidden_sizes=[8], norm="layer", dropout=0.5, activation="gelu"))
    assert [type(part) for part in model.layers[0]] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout]


@pytest.mark.parametrize(
    "changes", [{"input_shape": [0]}, {"input_shape": []}, {"activation": "rele"}, {"dropout": 1.0}]
)
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        MLPConfig(**changes)
