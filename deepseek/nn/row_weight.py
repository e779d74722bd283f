"""A weight in the form and order that the products of rows read it: panels of 32 channels, see `row_tiles.h`.

Forms: fp32, bf16, int8 with a scale a channel, 4 bits with a scale for 32 inputs. It is stored once for all uses:
single channels can be read back, as an embedding does. Not here: products (`row_products`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.int4_weights import MIDDLE, choose_scales, round_to_levels
from deepseek.nn.int8_linear import quantize_rows
from deepseek.nn.packed_bits import pack, unpack

RowForm = Literal["fp32", "bf16", "int8", "int4"]
GROUP = 32
"""Inputs that share a scale of 4-bit weights."""
LANES = 32
"""Channels of a panel; the last panel is filled up with zeros."""
_SIDE = {"fp32": 1, "bf16": 2, "int8": 4}  # inputs of one channel that stand side by side


class RowWeight(NamedTuple):
    """A weight `(out, in)` in one of the forms, with its bias. Make it by `rounded` or `packed`.

    `values` (panels, in / side, 32, side): fp32 of side 1, bf16 of 2, uint8 of 4 that are 128 above int8; for 4 bits
    uint8 (panels, in / 32, 4, 32, 4). `scale`: fp32 (panels, 32) for int8, bf16 (panels, in / 32, 32) for 4 bits, where
    `zero_point` uint8 of that shape may be (else 8). All contiguous; `bias` fp32 `(out,)`.
    """

    form: RowForm
    out_features: int
    in_features: int
    values: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def rounded(cls, weight: Tensor, form: RowForm, bias: Tensor | None = None) -> RowWeight:
        """Return a float `weight` `(out, in)` in `form`, to the nearest.

        Raises ModelError for int4 where 32 does not divide the inputs.
        """
        weight = weight.detach()
        if form == "int8":
            return cls.packed(form, *quantize_rows(weight), None, bias)
        if form == "int4":
            if weight.shape[1] % GROUP:
                raise ModelError("4-bit weights come in groups", found=weight.shape[1], wanted=f"a multiple of {GROUP}")
            scale, _ = choose_scales(weight, GROUP, symmetric=True)
            levels = round_to_levels(weight, scale, None, GROUP)
            return cls.packed(form, pack(levels, 4), scale, None, bias)
        return cls.packed(form, weight.to(torch.float32 if form == "fp32" else torch.bfloat16), None, None, bias)

    @classmethod
    def packed(
        cls,
        form: RowForm,
        values: Tensor,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> RowWeight:
        """Return what these numbers mean: fp32, bf16 or int8 `(out, in)`, the last with `scale` `(out,)`.

        Or uint8 `(out, in / 2)`, the first of two inputs in the low half, with `scale` `(out, in / 32)`, and maybe
        `zero_point` of that shape.
        """
        bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
        channels, width = values.shape
        if form == "int4" and scale is not None:
            scale = _panels(scale.to(torch.bfloat16)).transpose(1, 2).contiguous()
            zero_point = None if zero_point is None else _panels(zero_point).transpose(1, 2).contiguous()
            levels = torch.unflatten(_panels(unpack(values, 4, 2 * width)), 2, (-1, 2, 4, 4))
            both = levels[:, :, :, 0] + 16 * levels[:, :, :, 1]
            return cls(form, channels, 2 * width, both.permute(0, 2, 3, 1, 4).contiguous(), scale, zero_point, bias)
        if form == "int8" and scale is not None:
            values, scale = values.view(torch.uint8) ^ 128, _panels(scale.to(torch.float32))
        side = _SIDE[form]
        panels = torch.unflatten(_panels(F.pad(values, (0, -width % side))), 2, (-1, side))
        return cls(form, channels, width, panels.transpose(1, 2).contiguous(), scale, None, bias)

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """Return the fp32 weights of the channels `ids`, `(..., in)`; of all in order without them."""
        shape, device = (self.out_features,) if ids is None else ids.shape, self.values.device
        ids = torch.arange(self.out_features, device=device) if ids is None else ids.reshape(-1)
        panel, lane = ids // LANES, ids % LANES
        if self.form == "int4" and self.scale is not None:
            both = self.values[panel, :, :, lane]
            levels = torch.stack([both & 15, both >> 4], dim=2).flatten(2).to(torch.float32)
            zero = MIDDLE if self.zero_point is None else self.zero_point[panel, :, lane].to(torch.float32)[..., None]
            found = (levels - zero) * self.scale[panel, :, lane].to(torch.float32)[..., None]
        else:
            found = self.values[panel, :, lane].to(torch.float32)
            if self.form == "int8" and self.scale is not None:
                found = (found - 128) * self.scale[panel, lane, None, None]
        return found.flatten(1)[:, : self.in_features].reshape(*shape, self.in_features)


def _panels(x: Tensor) -> Tensor:
    """Return `(out, ...)` as `(panels, 32, ...)`, zeros at the end."""
    missing = -x.shape[0] % LANES
    whole = torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x
    return torch.unflatten(whole, 0, (-1, LANES))
