"""Layers for inference on few rows: linear and embedding, whose weight has one of the forms of `row_products`.

A tied output layer and embedding share one weight. Not here: which layers are swapped (`deepseek.serve.text.weights`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.int8_linear import register_optional
from deepseek.nn.row_products import Multiply, RowChain
from deepseek.nn.row_weight import RowForm, RowWeight


class _RowModule(nn.Module):
    """Holds a weight as buffers, so that it is saved and counted like any other."""

    weight: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: RowWeight) -> None:
        super().__init__()
        self.form: RowForm = weight.form
        self._shape = weight.out_features, weight.in_features
        self.register_buffer("weight", weight.values)
        for name in ("scale", "zero_point", "bias"):
            register_optional(self, name, getattr(weight, name))

    @property
    def row_weight(self) -> RowWeight:
        """The weight in its form."""
        return RowWeight(self.form, *self._shape, self.weight, self.scale, self.zero_point, self.bias)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight that is meant."""
        return self.row_weight.rows()


class RowLinear(_RowModule):
    """`nn.Linear` for inference: input `(..., in_features)` of any float dtype, output of the same.

    State dict: `weight`, and where the form has them `scale`, `zero_point`, `bias`: see `RowWeight`. Gradients reach
    the input, never the weight.
    """

    def __init__(self, weight: RowWeight) -> None:
        super().__init__(weight)
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self._chain: RowChain | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x.to(torch.float32), self.dequantized_weight(), self.bias).to(x.dtype)
        if self._chain is None:
            self._chain = RowChain([Multiply(self.row_weight, 0, 1)])
        rows = x.reshape(-1, self.in_features).to(torch.float32).contiguous()
        y = torch.empty(rows.shape[0], self.out_features, device=x.device)
        self._chain.run([rows, y])
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._chain = None  # it knows where the weight was
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chain": None}

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, form={self.form}"


class RowEmbedding(_RowModule):
    """`nn.Embedding` for inference: integer ids `(...)` to fp32 `(..., embedding_dim)`."""

    def __init__(self, weight: RowWeight) -> None:
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.out_features, weight.in_features

    def forward(self, ids: Tensor) -> Tensor:
        return self.row_weight.rows(ids)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, form={self.form}"
