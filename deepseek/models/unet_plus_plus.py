"""U-Net++: nested U-Nets that share an encoder, their skips filled with convolutions; images or volumes to masks.

Paper: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", arXiv:1807.10165.
Public counterpart: the authors' Keras code, https://github.com/MrGiovanni/UNetPlusPlus; with `norm: none` the number of
weights is that of the paper (9.04 million). Batch norm, the default, is what later re-implementations add.
Not here: the loss (`deepseek.nn.segmentation_losses`), and other encoders than the paper's.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.nn.checks import check_floats, check_shape
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.recompute_norm import recomputed_with_norms
from deepseek.nn.unet_blocks import DoubleConv, Norm, convolution, cut_to, pad_to_multiple, step_down, step_up


class UNetPlusPlusConfig(Config):
    """Sizes of a U-Net++."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "prune_level"})

    dims: Literal[2, 3] = 2
    """Dimensions of the input: 2 for images, 3 for volumes."""
    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of the input."""
    num_labels: int = Field(default=1, ge=1, le=1 << 16)
    """Channels of the output: 1 for foreground against background, else one for each class, background among them."""
    image_size: int = Field(default=96, ge=1, le=1 << 14)
    """Side the sizes are meant for, in pixels; any other works, and sides need not be equal."""
    channels: list[int] = Field(default=[32, 64, 128, 256, 512], min_length=2, max_length=8)
    """Channels at each size, from the input's own to the smallest; one less is the number of levels."""
    norm: Norm = "batch"
    """What follows each convolution: `batch`, `instance` (small batches of large volumes) or `none` (the paper)."""
    deep_supervision: bool = True
    """An output at each level, all of them trained; needed to prune."""
    prune_level: int | None = Field(default=None, ge=1, le=7)
    """Outside training: answer from this level and compute only what it needs; null is the last level."""
    gradient_checkpointing: bool = False
    """Compute the nodes' activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _levels_fit(self) -> UNetPlusPlusConfig:
        if min(self.channels) < 1:
            raise ValueError(
                f"channels {self.channels} has one below 1; nearest that fits: {[max(1, c) for c in self.channels]}"
            )
        if self.prune_level is not None and self.prune_level > self.levels:
            raise ValueError(
                f"prune_level {self.prune_level} of a model of {self.levels} levels; "
                f"nearest that fits: prune_level {self.levels}"
            )
        if self.prune_level not in (None, self.levels) and not self.deep_supervision:
            raise ValueError(
                f"prune_level {self.prune_level} has no output without deep_supervision; "
                f"nearest that fits: prune_level {self.levels}, or deep_supervision true"
            )
        return self

    @property
    def levels(self) -> int:
        """How often the size is halved, and how many U-Nets are nested."""
        return len(self.channels) - 1


class UNetPlusPlusOutput(NamedTuple):
    """`logits`: (batch, num_labels, *space), the mean over the heads. `heads`: (batch, heads, num_labels, *space)."""

    logits: Tensor
    heads: Tensor


class UNetPlusPlus(nn.Module):
    """Images (batch, channels, height, width) or volumes (with depth before height) to logits of the same size.

    Node "i_j" is the paper's X(i, j): at size i (0 is the input's own), step j along the skip.
    """

    config: UNetPlusPlusConfig

    def __init__(self, config: UNetPlusPlusConfig) -> None:
        super().__init__()
        self.config = config
        channels, levels, dims = config.channels, config.levels, config.dims
        self.pool = step_down(dims)
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for i in range(levels + 1):
            inputs = channels[i - 1] if i else config.num_channels
            self.nodes[f"{i}_0"] = DoubleConv(dims, inputs, channels[i], config.norm)
            for j in range(1, levels + 1 - i):
                self.ups[f"{i}_{j}"] = step_up(dims, channels[i + 1], channels[i])
                self.nodes[f"{i}_{j}"] = DoubleConv(dims, (j + 1) * channels[i], channels[i], config.norm)
        with_head = range(1, levels + 1) if config.deep_supervision else [levels]
        self.heads = nn.ModuleDict({str(j): convolution(dims, channels[0], config.num_labels, 1) for j in with_head})
        self.init_weights()

    def init_weights(self) -> None:
        """He-normal weights, as the authors' code has them, and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                # Stride and kernel are equal, so an output pixel is a sum over the input channels alone.
                nn.init.normal_(module.weight, std=module.in_channels**-0.5)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: Tensor, prune_level: int | None = None, all_heads: bool | None = None
    ) -> Tensor | UNetPlusPlusOutput:
        """Return logits (batch, num_labels, *space) for `pixel_values` (batch, num_channels, *space) of any size.

        With `all_heads` (None: in training with deep supervision) returns `UNetPlusPlusOutput` with every head up to
        the level asked for. `prune_level` (None: in training all levels, else the config's) leaves out all nodes that
        this level does not need. Raises ModelError for a wrong shape or a level without a head.
        """
        space = ("height", "width") if self.config.dims == 2 else ("depth", "height", "width")
        check_shape("pixel_values", pixel_values, ("batch", self.config.num_channels, *space))
        check_floats("pixel_values", pixel_values)
        level = self._level(prune_level)
        if all_heads is None:
            all_heads = self.training and self.config.deep_supervision
        x = self._pad(pixel_values.to(self._weight.dtype))
        top = self._nested(x, level)
        wanted = [j for j in range(1, level + 1) if str(j) in self.heads] if all_heads else [level]
        logits = [cut_to(self.heads[str(j)](top[j]), pixel_values.shape[2:]) for j in wanted]
        if not all_heads:
            return logits[0]
        heads = torch.stack(logits, dim=1)
        return UNetPlusPlusOutput(heads.mean(1), heads)

    def _nested(self, x: Tensor, level: int) -> list[Tensor]:
        """Return X(0, 0) to X(0, level). Goes along the diagonals, each adding one size and one nested U-Net."""
        rows: list[list[Tensor]] = []
        for bottom in range(level + 1):
            rows.append([self._run(f"{bottom}_0", self.pool(rows[bottom - 1][0]) if bottom else x)])
            for i in range(bottom - 1, -1, -1):
                name = f"{i}_{bottom - i}"
                raised = self.ups[name](rows[i + 1][-1])
                rows[i].append(self._run(name, torch.cat((*rows[i], raised), dim=1)))
        return rows[0]

    def _run(self, name: str, x: Tensor) -> Tensor:
        return recomputed_with_norms(self.config.gradient_checkpointing and self.training, self.nodes[name], x)

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """Return the input at a size that halves evenly down to the smallest, whatever level is asked for.

        Norms need two pixels there: one has no variance.
        """
        multiple = 2**self.config.levels
        return pad_to_multiple(pixel_values, multiple, multiple if self.config.norm == "none" else 2 * multiple)

    def _level(self, prune_level: int | None) -> int:
        levels = self.config.levels
        if prune_level is None:
            return levels if self.training else self.config.prune_level or levels
        if str(prune_level) not in self.heads:
            raise ModelError(
                "prune_level has no output",
                found=prune_level,
                wanted=f"one of {[int(level) for level in self.heads]}",
                fix=None if self.config.deep_supervision else "train a model with deep_supervision: true",
            )
        return prune_level

    def pruned(self, level: int) -> UNetPlusPlus:
        """Return a smaller model that answers as this one does at `prune_level=level`, without the nodes left out.

        The weights are copies. Where the sides are no multiples of 2**levels the answers may differ at the far edges,
        as the smaller model pads less. Raises ModelError for a level without an output.
        """
        self._level(level)
        config = self.config.replace(channels=self.config.channels[: level + 1], prune_level=None)
        small = UNetPlusPlus(config).to(self._weight)
        kept = small.state_dict().keys()
        small.load_state_dict({name: value for name, value in self.state_dict().items() if name in kept})
        return small.train(self.training)

    @property
    def _weight(self) -> Tensor:
        return float_tensor(self.nodes["0_0"].get_submodule("conv1"))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `pixel_values` (batch_size, num_channels, *space), each side `image_size`."""
        sides = [self.config.image_size] * self.config.dims
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(batch_size, self.config.num_channels, *sides, generator=generator)
        return {"pixel_values": pixels.to(self._weight)}
