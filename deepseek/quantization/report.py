"""What quantization did, in numbers: bytes before and after, and the signal-to-noise ratio of each layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

_LOSSLESS_DB = 200.0


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer. Ratios are 10 log10(power of the float values / power of the difference), at most 200 dB."""

    name: str
    kind: str
    mode: str
    bytes_before: int
    bytes_after: int
    weight_sqnr_db: float
    output_sqnr_db: float | None
    """Of the layer's output on one batch with exact inputs; None where no batch was at hand."""
    weight_bits: int = 8
    calibration: str | None = None
    """How a static layer's range was found; with `best` the method that won."""


@dataclasses.dataclass(frozen=True)
class QuantReport:
    """What one call of `quantize_model` did. Bytes are those of all parameters and buffers, shared ones once."""

    bytes_before: int
    bytes_after: int
    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]
    """The reason for each layer with weights that stayed as it was."""
    folded: tuple[str, ...] = ()
    """Batch norms that the layer before them took up."""
    smoothed: tuple[str, ...] = ()
    """Linear layers whose input is scaled first, by their new names."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return dataclasses.asdict(self)

    def worst(self, count: int = 5) -> list[LayerReport]:
        """Return the layers that lost most, worst first."""
        return sorted(self.layers, key=lambda layer: layer.output_sqnr_db or layer.weight_sqnr_db)[:count]


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio of two tensors of one shape, in dB."""
    exact = signal.detach().to(torch.float64)
    return ratio_db(float(exact.square().sum()), float((exact - approximation.detach()).square().sum()))


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), at most 200 dB."""
    if noise <= signal * 10 ** (-_LOSSLESS_DB / 10):
        return _LOSSLESS_DB
    return float(10 * torch.log10(torch.tensor(max(signal, 1e-300) / noise, dtype=torch.float64)))


def tensor_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and persistent buffers, a tensor under several names counted once."""
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
