"""FT-Transformer: every column of a table becomes a token, a transformer mixes them, a class token answers.

Paper: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", arXiv:2106.11959
Public counterpart: `FTTransformer` of the authors' rtdl. The class token stands first here and last there, which
changes nothing: columns have no order beyond their own weights.
Not here: how columns are read, scaled and numbered.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.config_checks import check_heads
from deepseek.nn.dropout import dropout
from deepseek.nn.feature_tokenizer import FeatureTokenizer
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.multi_head_attention import MultiHeadAttention
from deepseek.nn.recompute import recomputed

Cardinality = Annotated[int, Field(ge=1, le=1 << 24)]


class FTTransformerConfig(Config):
    """Sizes of an FT-Transformer; the defaults are the paper's."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_numeric: int = Field(default=0, ge=0, le=1 << 16)
    """Number of numeric columns."""
    cardinalities: list[Cardinality] = Field(default=[], max_length=1 << 16)
    """For each categorical column, how many categories it has."""
    num_labels: int = Field(default=1, ge=1, le=1 << 20)
    """Number of outputs: classes, or 1 for a value or a yes-or-no question."""
    num_layers: int = Field(default=3, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=192, ge=1, le=1 << 16)
    """Width of a token."""
    num_heads: int = Field(default=8, ge=1, le=1024)
    """Attention heads."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the gated feed-forward layers; null is 4/3 * d_model."""
    attention_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    ff_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of activations inside the feed-forward layers set to zero in training."""
    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of what a block adds to the stream that is set to zero in training."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _fits(self) -> FTTransformerConfig:
        if not self.num_numeric and not self.cardinalities:
            raise ValueError("the table has no columns; nearest that fits: num_numeric 1")
        check_heads(self.d_model, self.num_heads)
        return self


class FTTransformer(nn.Module):
    """The columns of a table to logits."""

    config: FTTransformerConfig

    def __init__(self, config: FTTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = FeatureTokenizer(config.num_numeric, config.cardinalities, config.d_model)
        self.class_token = nn.Parameter(torch.empty(config.d_model))
        self.blocks = nn.ModuleList(ColumnBlock(config, first=layer == 0) for layer in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Tokens within 1 / sqrt(d_model), linear layers within 1 / sqrt(inputs), attention's biases zero."""
        self.tokenizer.init_weights()
        nn.init.uniform_(self.class_token, -1 / math.sqrt(self.config.d_model), 1 / math.sqrt(self.config.d_model))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound)
                if ".attention." in name:
                    nn.init.zeros_(module.bias)
                else:
                    nn.init.uniform_(module.bias, -bound, bound)

    def forward(self, numeric: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Return logits (batch, num_labels).

        `numeric` (batch, num_numeric) floating point, about zero mean and unit variance; `categorical`
        (batch, len(cardinalities)) int64. Raises ModelError for a missing table, another shape, an unknown category.
        """
        logits: Tensor = self.head(F.relu(self.forward_features(numeric, categorical)))
        return logits

    def forward_features(self, numeric: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Return the class token after the last block: (batch, d_model), normalised."""
        tokens = self.tokenizer(numeric, categorical)
        x = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            recompute = self.config.gradient_checkpointing and self.training
            x = recomputed(recompute, block, x, layer == last)
        features: Tensor = self.norm(x[:, 0])
        return features

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `numeric` and `categorical`, as far as the table has them."""
        generator = torch.Generator().manual_seed(0)
        inputs = {}
        if self.config.num_numeric:
            numeric = torch.randn(batch_size, self.config.num_numeric, generator=generator)
            inputs["numeric"] = numeric.to(float_tensor(self.head))
        if self.config.cardinalities:
            columns = [torch.randint(size, (batch_size,), generator=generator) for size in self.config.cardinalities]
            inputs["categorical"] = torch.stack(columns, dim=1).to(self.head.weight.device)
        return inputs


class ReGLU(nn.Module):
    """A feed-forward layer whose one half gates the other by ReLU, with dropout inside (Shazeer, arXiv:2002.05202)."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        out: Tensor = self.down(dropout(F.relu(self.gate(x)) * self.up(x), self.dropout, self.training))
        return out


class ColumnBlock(nn.Module):
    """Attention, then the gated feed-forward layer, each on a normalised input and added to it.

    The first block of a model does not normalise attention's input: the paper found that this trains better.
    """

    def __init__(self, config: FTTransformerConfig, *, first: bool) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention_norm = nn.Identity() if first else nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, config.num_heads, dropout=config.attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = ReGLU(d_model, config.d_ff or 4 * d_model // 3, config.ff_dropout)
        self.dropout = config.residual_dropout

    def forward(self, x: Tensor, class_token_only: bool = False) -> Tensor:
        """Return (batch, tokens, d_model), or for `class_token_only`, all the last block needs, (batch, 1, d_model)."""
        normed = self.attention_norm(x)
        stream, queries = (x[:, :1], normed[:, :1]) if class_token_only else (x, normed)
        stream = stream + dropout(self.attention(queries, context=normed), self.dropout, self.training)
        added = self.feed_forward(self.feed_forward_norm(stream))
        return stream + dropout(added, self.dropout, self.training)
