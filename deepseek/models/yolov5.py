"""YOLOv5 (release 6): a one-stage detector; CSP backbone, feature pyramid up and down, three heads with anchors.

There is no paper of its own. Its parts: CSP (Wang et al. 2019, arXiv:1911.11929), path aggregation (Liu et al. 2018,
arXiv:1803.01534), anchors and grid cells (Redmon & Farhadi 2018, arXiv:1804.02767); surveyed in Terven et al. 2023,
arXiv:2304.00501. Public counterpart: https://docs.ultralytics.com/models/yolov5, whose numbers of weights these equal.
Written from the published architecture; no code of the counterpart was used. Not here: the loss, suppression and
letterbox (`deepseek.nn`).
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.nn.boxes import cxcywh_to_xyxy
from deepseek.nn.conv_norm import ConvNorm, init_conv
from deepseek.nn.csp import CSP_STYLE, SPPF, CSPBlock
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.image_input import check_batch_statistics, check_image
from deepseek.nn.recompute_norm import recomputed_with_norms

STRIDES = (8, 16, 32)
"""Pixels a cell covers in each of the three maps."""

COCO_ANCHORS = [
    [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
    [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
    [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
]


class YOLOv5Config(Config):
    """Sizes of a YOLOv5."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=80, ge=1, le=1 << 16)
    """Number of classes of objects."""
    image_size: int = Field(default=640, ge=32, le=1 << 14, multiple_of=32)
    """Height and width the anchors are meant for; any other multiples of 32 work."""
    depth_multiple: float = Field(default=0.33, gt=0, le=8)
    """Bottlenecks in a CSP block, as a share of the large model's."""
    width_multiple: float = Field(default=0.5, gt=0, le=8)
    """Channels, as a share of the large model's, rounded up to multiples of 8."""
    anchors: list[list[list[float]]] = Field(default=COCO_ANCHORS, min_length=3, max_length=3)
    """Widths and heights of the expected boxes, in pixels: for each of the strides 8, 16 and 32 a list of pairs."""
    gradient_checkpointing: bool = False
    """Compute the stages' activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _anchors_are_pairs(self) -> YOLOv5Config:
        counts = [len(level) for level in self.anchors]
        if min(counts) == 0 or len(set(counts)) > 1:
            fitting = max(1, min(counts))
            raise ValueError(
                f"anchors has {counts} boxes for its three maps; nearest that fits: {fitting} for each of them"
            )
        for level in self.anchors:
            for anchor in level:
                if len(anchor) != 2 or min(anchor) <= 0:
                    raise ValueError(f"anchor {anchor} is no width and height; wanted two numbers of pixels above 0")
        return self


class YOLOv5Maps(NamedTuple):
    """Raw maps by stride, each (batch, anchors, height / stride, width / stride, 5 + num_labels).

    The last dimension is x, y, width, height, objectness and one number for each class, before the sigmoid.
    """

    stride8: Tensor
    stride16: Tensor
    stride32: Tensor


class Candidates(NamedTuple):
    """All boxes of all maps: `boxes` (batch, n, 4), xyxy in pixels; `scores` (batch, n, num_labels), 0 to 1."""

    boxes: Tensor
    scores: Tensor


class YOLOv5(nn.Module):
    """Images to raw maps; `decode` makes boxes of them."""

    config: YOLOv5Config
    strides = STRIDES

    def __init__(self, config: YOLOv5Config) -> None:
        super().__init__()
        self.config = config
        c64, c128, c256, c512, c1024 = (self._width(channels) for channels in (64, 128, 256, 512, 1024))
        d3, d6, d9 = (max(round(depth * config.depth_multiple), 1) for depth in (3, 6, 9))
        self.stem = ConvNorm(config.num_channels, c64, 6, style=CSP_STYLE, stride=2)
        self.stage4 = _stage(c64, c128, d3)
        self.stage8 = _stage(c128, c256, d6)
        self.stage16 = _stage(c256, c512, d9)
        self.stage32 = _stage(c512, c1024, d3).append(SPPF(c1024, c1024))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral32 = ConvNorm(c1024, c512, style=CSP_STYLE)
        self.up16 = CSPBlock(2 * c512, c512, d3, shortcut=False)
        self.lateral16 = ConvNorm(c512, c256, style=CSP_STYLE)
        self.up8 = CSPBlock(2 * c256, c256, d3, shortcut=False)
        self.down16 = ConvNorm(c256, c256, 3, style=CSP_STYLE, stride=2)
        self.out16 = CSPBlock(2 * c256, c512, d3, shortcut=False)
        self.down32 = ConvNorm(c512, c512, 3, style=CSP_STYLE, stride=2)
        self.out32 = CSPBlock(2 * c512, c1024, d3, shortcut=False)
        outputs = len(config.anchors[0]) * (5 + config.num_labels)
        self.heads = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in (c256, c512, c1024))
        self.init_weights()

    def _width(self, channels: int) -> int:
        return max(8, math.ceil(channels * self.config.width_multiple / 8) * 8)

    def init_weights(self) -> None:
        """Normal filters of deviation sqrt(2 / fan-out); heads begin with the share of objects to be expected.

        Objectness starts at 8 objects in an image of 640 pixels, each class at 0.6 / num_labels: without such priors
        the many empty cells swamp the first steps (Lin et al. 2017, arXiv:1708.02002, section 4.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        class_chance = 0.6 / self.config.num_labels
        for head, stride in zip(self.heads, STRIDES, strict=True):
            with torch.no_grad():
                bias = head.get_parameter("bias").zero_().view(-1, 5 + self.config.num_labels)
                bias[:, 4] = math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] = math.log(class_chance / (1 - class_chance))

    def forward(self, pixel_values: Tensor) -> YOLOv5Maps:
        """Return raw maps for `pixel_values` (batch, num_channels, height, width), 0 to 1, sides multiples of 32.

        Raises ModelError naming the nearest size that fits.
        """
        check_image("pixel_values", pixel_values, self.config.num_channels)
        _check_sides(pixel_values)
        if self.training:
            check_batch_statistics("pixel_values", pixel_values, STRIDES[-1])
        x = self._run(self.stem, pixel_values.to(float_tensor(self.stem.conv).dtype))
        p8 = self._run(self.stage8, self._run(self.stage4, x))
        p16 = self._run(self.stage16, p8)
        lateral32 = self.lateral32(self._run(self.stage32, p16))
        lateral16 = self.lateral16(self._run(self.up16, torch.cat((self.upsample(lateral32), p16), dim=1)))
        out8 = self._run(self.up8, torch.cat((self.upsample(lateral16), p8), dim=1))
        out16 = self._run(self.out16, torch.cat((self.down16(out8), lateral16), dim=1))
        out32 = self._run(self.out32, torch.cat((self.down32(out16), lateral32), dim=1))
        maps = (head(features) for head, features in zip(self.heads, (out8, out16, out32), strict=True))
        return YOLOv5Maps(*(self._split_anchors(raw) for raw in maps))

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return recomputed_with_norms(self.config.gradient_checkpointing and self.training, block, x)

    def _split_anchors(self, raw: Tensor) -> Tensor:
        batch, _, rows, columns = raw.shape
        split = raw.view(batch, len(self.config.anchors[0]), 5 + self.config.num_labels, rows, columns)
        return split.permute(0, 1, 3, 4, 2)

    def decode(self, outputs: YOLOv5Maps) -> Candidates:
        """Return boxes and scores in float32 from what `forward` returned; n is anchors * cells of all three maps.

        Source: the counterpart's documentation, "eliminate grid sensitivity": a centre lies up to half a cell outside
        its own, a side is at most 4 times the anchor's.
        """
        boxes, scores = [], []
        for raw, anchors, stride in zip(outputs, self.config.anchors, STRIDES, strict=True):
            rows, columns = raw.shape[2], raw.shape[3]
            chance = raw.float().sigmoid()
            x = torch.arange(columns, device=raw.device, dtype=torch.float32).expand(rows, columns)
            y = torch.arange(rows, device=raw.device, dtype=torch.float32)[:, None].expand(rows, columns)
            sides = torch.tensor(anchors, device=raw.device)[:, None, None, :]
            centre = (chance[..., :2] * 2 - 0.5 + torch.stack((x, y), dim=-1)) * stride
            size = (chance[..., 2:4] * 2).square() * sides
            boxes.append(cxcywh_to_xyxy(torch.cat((centre, size), dim=-1)).flatten(1, 3))
            scores.append((chance[..., 4:5] * chance[..., 5:]).flatten(1, 3))
        return Candidates(torch.cat(boxes, dim=1), torch.cat(scores, dim=1))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `pixel_values` (batch_size, num_channels, side, side)."""
        generator = torch.Generator().manual_seed(0)
        side = self.config.image_size
        pixels = torch.rand(batch_size, self.config.num_channels, side, side, generator=generator)
        return {"pixel_values": pixels.to(float_tensor(self.stem.conv))}


def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Return a convolution that halves the size, and a CSP block."""
    return nn.Sequential(ConvNorm(inputs, outputs, 3, style=CSP_STYLE, stride=2), CSPBlock(outputs, outputs, depth))


def _check_sides(pixel_values: Tensor) -> None:
    height, width = pixel_values.shape[2:]
    if not torch.compiler.is_compiling() and (height % 32 or width % 32 or height == 0 or width == 0):
        fitting = tuple(max(32, round(side / 32) * 32) for side in (height, width))
        raise ModelError(
            "pixel_values has sides that are no multiples of 32",
            found=f"{height} x {width}",
            wanted=f"nearest that fits: {fitting[0]} x {fitting[1]}",
            fix="resize the images with deepseek.nn.letterbox.letterbox",
        )
