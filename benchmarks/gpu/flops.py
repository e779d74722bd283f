"""Model FLOPs of a GPT's training step, and the peak rates of GPUs they are held against.

A multiply-add counts as two. For each token, forward and backward: 6 N for the weights that take part in matrix
products (all but the position and token look-ups; the output head counts, tied or not), and for attention 12 L d T
where all T tokens are looked at, half of that where a token looks back only (Kaplan et al. 2020, arXiv:2001.08361,
section 2.1; Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B). What is computed again for the sake of memory
does not count. MFU here takes the half, the smaller figure; PaLM's own convention, the larger one, is reported beside.
"""

from __future__ import annotations

from typing import NamedTuple

BF16_PEAKS = {  # dense, from the makers' data sheets; SXM boards where there are several
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


class StepFlops(NamedTuple):
    """Floating-point operations of one training step."""

    weights: int
    """6 N for each token."""
    attention: int
    """Of causal attention."""

    @property
    def causal(self) -> int:
        """What the model needs."""
        return self.weights + self.attention

    @property
    def full(self) -> int:
        """PaLM's convention: attention counted as if every token looked at all."""
        return self.weights + 2 * self.attention


def matrix_weights(layers: int, width: int, vocab_size: int) -> int:
    """Return N: the weights of a GPT's linear layers and of its output head, biases left out."""
    return layers * 12 * width * width + vocab_size * width


def step_flops(*, layers: int, width: int, vocab_size: int, length: int, rows: int) -> StepFlops:
    """Return the FLOPs of a step over `rows` sequences of `length` tokens."""
    tokens = rows * length
    weights = 6 * matrix_weights(layers, width, vocab_size) * tokens
    return StepFlops(weights, 6 * layers * width * length * tokens)


def bf16_peak(device: str) -> float | None:
    """Return the peak rate of a GPU by its name, in FLOP/s; None for one that is not in the table."""
    found = [name for name in BF16_PEAKS if name in device]
    return BF16_PEAKS[max(found, key=len)] if found else None


def mfu(flops: int, seconds: float, peak: float | None) -> float | None:
    """Return the share of the peak rate that `flops` in `seconds` are, None without a peak."""
    return None if peak is None else flops / seconds / peak
