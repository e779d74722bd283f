"""Turns the columns of a table into tokens: a number times a learned vector, a category by lookup, each plus a bias.

Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", arXiv:2106.11959, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.checks import check_floats, check_shape


class FeatureTokenizer(nn.Module):
    """One token for each numeric and each categorical column.

    All categories share one lookup table; column j begins at `offsets[j]`.
    """

    offsets: Tensor

    def __init__(self, num_numeric: int, cardinalities: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.cardinalities = tuple(cardinalities)
        self.d_model = d_model
        self.num_numeric = num_numeric
        if num_numeric:
            self.numeric_weight = nn.Parameter(torch.empty(num_numeric, d_model))
            self.numeric_bias = nn.Parameter(torch.empty(num_numeric, d_model))
        if cardinalities:
            self.category_embedding = nn.Embedding(sum(cardinalities), d_model)
            self.category_bias = nn.Parameter(torch.empty(len(cardinalities), d_model))
            starts = [sum(self.cardinalities[:column]) for column in range(len(cardinalities))]
            self.register_buffer("offsets", torch.tensor(starts))
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform within 1 / sqrt(d_model), as the paper has it."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.d_model), 1 / math.sqrt(self.d_model))

    def forward(self, numeric: Tensor | None, categorical: Tensor | None) -> Tensor:
        """Return tokens (batch, columns, d_model), the numeric columns first.

        `numeric` (batch, num_numeric) floating point; `categorical` (batch, len(cardinalities)) int64, column j from 0
        to cardinalities[j] - 1; None where the table has no such column. Raises ModelError for other inputs.
        """
        self._check(numeric, categorical)
        tokens = []
        if numeric is not None and self.num_numeric:
            numeric = numeric.to(self.numeric_weight.dtype)
            tokens.append(numeric[:, :, None] * self.numeric_weight + self.numeric_bias)
        if categorical is not None and self.cardinalities:
            tokens.append(self.category_embedding(categorical + self.offsets) + self.category_bias)
        return torch.cat(tokens, dim=1)

    def _check(self, numeric: Tensor | None, categorical: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            return
        columns = {"numeric": (numeric, self.num_numeric), "categorical": (categorical, len(self.cardinalities))}
        for name, (values, wanted) in columns.items():
            if values is None and wanted:
                raise ModelError(f"{name} is missing", found="None", wanted=f"(batch, {wanted})")
            if values is not None:
                check_shape(name, values, ("batch", wanted))
        if numeric is not None and self.num_numeric:
            check_floats("numeric", numeric)
            if categorical is not None and self.cardinalities:
                check_shape("categorical", categorical, (numeric.shape[0], len(self.cardinalities)))
        if categorical is not None and self.cardinalities:
            check_categories("categorical", categorical, self.cardinalities)


def check_categories(name: str, values: Tensor, cardinalities: Sequence[int]) -> None:
    """Check category numbers (batch, columns): integers, column j from 0 to cardinalities[j] - 1. Raises ModelError.

    The range is looked at on a CPU only, where it costs no synchronisation.
    """
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ModelError(f"{name} must hold category numbers", found=values.dtype, wanted="int64")
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = values.amin(dim=0).tolist(), values.amax(dim=0).tolist()
    for column, size in enumerate(cardinalities):
        if low[column] < 0 or high[column] >= size:
            raise ModelError(
                f"{name} has a category the model does not know in column {column}",
                found=f"{low[column]} to {high[column]}",
                wanted=f"0 to {size - 1}",
                fix="give unseen categories a number of their own before training",
            )
