"""Layers that compute in floating point on values rounded as int8 layers round them, and learn the steps of rounding.

They hold the parameters of the layer they stand for, under the same names, and add one logarithm of a step for each
output channel and one for the input. Logarithms, because AdamW moves every number by about the learning rate: a step
then changes by a share of itself, never below zero (Jain et al. 2020, arXiv:1903.08066). All are vectors or scalars,
which weight decay leaves alone. Not here: putting them into a model (`prepare.py`), and int8 layers (`convert.py`).
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.fake_quant.fake_quantize import fake_quantize, to_levels
from deepseek.nn.fake_quant.initial import highest_level

INPUT_LEVELS = (-128, 127)
_SPAN = 255  # steps between them


class WeightQuantizer(nn.Module):
    """Rounds a weight `(rows, ...)` to `bits` bits around zero, with a learned step for each row: `log_step` (rows,).

    The gradient of a step is divided by the root of (numbers in a row times the highest level), as LSQ does. With
    `packed` the steps are numbers of bfloat16, as the kernels of packed 4-bit layers want them.
    """

    def __init__(self, steps: Tensor, bits: int, packed: bool = False) -> None:
        super().__init__()
        self.bits, self.packed = bits, packed
        highest = highest_level(bits)
        self.levels = (-highest, highest)
        self.log_step = nn.Parameter(steps.log())

    def forward(self, weight: Tensor) -> Tensor:
        return self.on_rows(weight, self.log_step)

    def on_rows(self, rows: Tensor, log_step: Tensor) -> Tensor:
        """Return rows rounded, each with its own step."""
        gradient = (max(1, math.prod(rows.shape[1:])) * self.levels[1]) ** -0.5
        return fake_quantize(rows, self._step(log_step), None, self.levels, gradient)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return (int8 tensor like `weight`, float32 steps (rows,)): what the rounded weight is made of."""
        step = self._step(self.log_step.detach().float())
        return to_levels(weight.detach(), step, None, self.levels).to(torch.int8), step

    def _step(self, log_step: Tensor) -> Tensor:
        step = log_step.exp()
        return step.bfloat16().float() if self.packed else step

    def extra_repr(self) -> str:
        return f"bits={self.bits}, packed={self.packed}"


class InputQuantizer(nn.Module):
    """Rounds activations to 8 bits with one learned step (`log_step`) and, if not symmetric, a learned zero point.

    `offset` is the zero point as a share of the 255 steps, so that it moves as fast as the step does.
    """

    offset: nn.Parameter | None

    def __init__(self, step: float, zero_point: int | None) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))
        offset = None if zero_point is None else nn.Parameter(torch.tensor(zero_point / _SPAN))
        self.register_parameter("offset", offset)

    @property
    def symmetric(self) -> bool:
        """Whether zero lies in the middle."""
        return self.offset is None

    def forward(self, x: Tensor) -> Tensor:
        features = max(1, x[:1].numel())
        return fake_quantize(x, self.log_step.exp(), self._zero_point(), INPUT_LEVELS, (features * 127) ** -0.5)

    def range(self) -> tuple[float, int]:
        """Return (step, zero point), as int8 layers have them."""
        zero = self._zero_point()
        return float(self.log_step.detach().float().exp()), 0 if zero is None else round(float(zero.detach()))

    def _zero_point(self) -> Tensor | None:
        return None if self.offset is None else (self.offset * _SPAN).clamp(*INPUT_LEVELS)

    def extra_repr(self) -> str:
        return f"symmetric={self.symmetric}"


class FakeQuantLinear(nn.Linear):
    """`nn.Linear` on a rounded weight and, with an `input_quantizer`, a rounded input. Shapes and dtypes as there."""

    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    norm: str | None
    """The batch norm that follows and is folded at the end, by its name in the model."""

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Return a layer that holds the parameters of `linear`; `equip` gives it its quantizers."""
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(_rounded(self, input), self.weight_quantizer(self.weight), self.bias)


class FakeQuantEmbedding(nn.Embedding):
    """`nn.Embedding` on rounded rows: only those looked up are rounded. Shapes and dtypes as there."""

    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    norm: str | None
    """Both None: ids are no numbers to round, and no norm can be folded into a table."""

    @classmethod
    def of(cls, table: nn.Embedding) -> Self:
        """Return a layer that holds the table of `table`; `equip` gives it its quantizer."""
        made = cls(
            table.num_embeddings,
            table.embedding_dim,
            padding_idx=table.padding_idx,
            scale_grad_by_freq=table.scale_grad_by_freq,
            sparse=table.sparse,
            device="meta",
        )
        made.weight = table.weight
        return made.train(table.training)

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        steps = F.embedding(input, self.weight_quantizer.log_step.unsqueeze(1))
        rounded = self.weight_quantizer.on_rows(rows.reshape(-1, self.embedding_dim), steps.flatten())
        return rounded.reshape(rows.shape)


class FakeQuantConv1d(nn.Conv1d):
    """`nn.Conv1d` on a rounded weight and, with an `input_quantizer`, a rounded input. Shapes and dtypes as there."""

    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    norm: str | None

    @classmethod
    def of(cls, conv: nn.Conv1d) -> Self:
        """Return a layer that holds the parameters of `conv`; `equip` gives it its quantizers."""
        made: Self = _like_conv(cls, conv)
        return made

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(_rounded(self, input), self.weight_quantizer(self.weight), self.bias)
        return y


class FakeQuantConv2d(nn.Conv2d):
    """`nn.Conv2d`, as `FakeQuantConv1d` is `nn.Conv1d`."""

    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    norm: str | None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Return a layer that holds the parameters of `conv`; `equip` gives it its quantizers."""
        made: Self = _like_conv(cls, conv)
        return made

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(_rounded(self, input), self.weight_quantizer(self.weight), self.bias)
        return y


class FakeQuantConv3d(nn.Conv3d):
    """`nn.Conv3d`, as `FakeQuantConv1d` is `nn.Conv1d`."""

    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer | None
    norm: str | None

    @classmethod
    def of(cls, conv: nn.Conv3d) -> Self:
        """Return a layer that holds the parameters of `conv`; `equip` gives it its quantizers."""
        made: Self = _like_conv(cls, conv)
        return made

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(_rounded(self, input), self.weight_quantizer(self.weight), self.bias)
        return y


FakeQuantLayer = FakeQuantLinear | FakeQuantEmbedding | FakeQuantConv1d | FakeQuantConv2d | FakeQuantConv3d

FORMS: dict[type[nn.Module], Any] = {
    nn.Linear: FakeQuantLinear,
    nn.Embedding: FakeQuantEmbedding,
    nn.Conv1d: FakeQuantConv1d,
    nn.Conv2d: FakeQuantConv2d,
    nn.Conv3d: FakeQuantConv3d,
}
"""Layer -> the form it trains in."""


def equip(
    layer: nn.Module, weight: WeightQuantizer, input_quantizer: InputQuantizer | None, norm: str | None
) -> FakeQuantLayer:
    """Return the training form of a float layer, with these quantizers, sharing the parameters of the layer."""
    made: Any = FORMS[type(layer)].of(layer)
    made.weight_quantizer, made.input_quantizer, made.norm = weight, input_quantizer, norm
    form: FakeQuantLayer = made
    return form


def prepared_layers(model: nn.Module) -> dict[str, FakeQuantLayer]:
    """Return the layers that `prepare_qat` put into a model, by name; one with several names under each."""
    return {
        name: part for name, part in model.named_modules(remove_duplicate=False) if isinstance(part, FakeQuantLayer)
    }


def can_be_packed(layer: FakeQuantLayer) -> bool:
    """Return whether the layer, as it is now, has a form whose 4-bit weights take 4 bits."""
    packs = isinstance(layer, FakeQuantLinear | FakeQuantEmbedding | FakeQuantConv2d) and layer.input_quantizer is None
    return packs and layer.weight_quantizer.bits == 4 and not (layer.norm and isinstance(layer, FakeQuantLinear))


def _like_conv(cls: Any, conv: Any) -> Any:
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    made = cls(*sizes, groups=conv.groups, bias=False, device="meta")
    made.weight, made.bias = conv.weight, conv.bias
    return made.train(conv.training)


def _rounded(layer: Any, x: Tensor) -> Tensor:
    rounded: Tensor = x if layer.input_quantizer is None else layer.input_quantizer(x)
    return rounded
