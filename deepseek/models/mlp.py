"""MLP: linear layers with an activation between, for features of a fixed shape (tables, small images, embeddings).

Paper: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", doi:10.1038/323533a0
Initialisation: He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852.
Public counterpart: none by name; with the same weights it is `nn.Sequential` of `nn.Linear` and the activation.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.checks import check_floats, check_shape
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.recompute_norm import recomputed_with_norms

Size = Annotated[int, Field(ge=1, le=1 << 24)]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLPConfig(Config):
    """Sizes of an MLP."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    input_shape: list[Size] = Field(default=[784], min_length=1, max_length=8)
    """Shape of one sample, such as [784] or [1, 28, 28]; it is flattened."""
    hidden_sizes: list[Size] = Field(default=[256, 128], max_length=256)
    """Width of each hidden layer; an empty list makes a linear model."""
    num_labels: int = Field(default=10, ge=1, le=1 << 24)
    """Number of outputs: classes, or values to predict."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What stands between the linear layers."""
    norm: Literal["none", "batch", "layer"] = "none"
    """Normalisation before each activation."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden activations set to zero in training."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass: less memory, about a third more time."""

    @property
    def input_size(self) -> int:
        """The number of values of one sample."""
        return math.prod(self.input_shape)


class MLP(nn.Module):
    """Features to logits."""

    config: MLPConfig

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.input_size, *config.hidden_sizes]
        self.layers = nn.ModuleList(
            _hidden_layer(config, size_in, size_out) for size_in, size_out in zip(sizes, sizes[1:], strict=False)
        )
        self.head = nn.Linear(sizes[-1], config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Weights of variance 2 / inputs (1 / inputs for tanh and the last layer), biases of zero."""
        gain = 1.0 if self.config.activation == "tanh" else math.sqrt(2.0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scale = 1.0 if module is self.head else gain
                nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `features` (batch, *input_shape), floating point.

        Raises ModelError for another shape.
        """
        logits: Tensor = self.head(self.forward_features(features))
        return logits

    def forward_features(self, features: Tensor) -> Tensor:
        """Return what the output layer reads: (batch, last hidden size)."""
        check_shape("features", features, ("batch", *self.config.input_shape))
        check_floats("features", features)
        x = features.to(float_tensor(self.head).dtype).flatten(1)
        if self.config.gradient_checkpointing and self.training:
            return self._recomputed(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def _recomputed(self, x: Tensor) -> Tensor:
        """Return what the layers make of `x`, computed again in the backward pass, about sqrt(layers) at a time.

        What a layer keeps is mostly what the next one reads: there is nothing to gain from one layer at a time.
        """
        span = math.isqrt(max(len(self.layers) - 1, 0)) + 1
        for first in range(0, len(self.layers), span):
            x = recomputed_with_norms(True, nn.Sequential(*self.layers[first : first + span]), x)
        return x

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `features` (batch_size, *input_shape)."""
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(batch_size, *self.config.input_shape, generator=generator)
        return {"features": features.to(float_tensor(self.head))}


def _hidden_layer(config: MLPConfig, size_in: int, size_out: int) -> nn.Sequential:
    layer = nn.Sequential(nn.Linear(size_in, size_out))
    if config.norm != "none":
        layer.append(nn.BatchNorm1d(size_out) if config.norm == "batch" else nn.LayerNorm(size_out))
    layer.append(ACTIVATIONS[config.activation]())
    if config.dropout:
        layer.append(nn.Dropout(config.dropout))
    return layer
