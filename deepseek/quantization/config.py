"""What to quantize and how, as one typed config. Not here: doing it (`quantize.py`)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from deepseek.config import Config
from deepseek.nn.int8_linear import Int8Mode

Calibration = Literal["minmax", "percentile", "mse", "kl"]

_ACTIVATION_BITS = {8: (8, 16, 32), 16: (16,)}


class QuantConfig(Config):
    """How `quantize_model` quantizes. Raises ConfigError for combinations that make no sense."""

    weight_bits: int = 8
    """Bits of a stored weight: 8 (integers with one scale for each output channel) or 16 (bfloat16)."""

    activation_bits: int | None = None
    """Bits of a layer's input: 8 (quantized when the layer runs), or 16 or 32 (left as the model computes them).
    Unset: what `method` needs."""

    quant_scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    """Range of quantized activations: around zero, or from their smallest to their largest. Weights are symmetric."""

    method: Int8Mode | None = None
    """`dynamic` (ranges for each token at run time), `static` (calibrated once) or `weight_only` (float activations).
    Unset: `weight_only` with 16 or 32 activation bits, else `dynamic`."""

    calibration: Calibration = "mse"
    """How `static` picks a range from what it saw: all of it, all but 0.01 %, least squared error, or least
    Kullback-Leibler divergence."""

    embeddings: bool = True
    """Whether embedding tables become int8 too. A table shared with the output layer is stored once for both."""

    skip: list[str] = []
    """Layers to leave as they are: module names, `*` and `?` allowed."""

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.weight_bits not in _ACTIVATION_BITS:
            raise ValueError(f"weight_bits is {self.weight_bits}; wanted 8 (int8) or 16 (bfloat16)")
        allowed = _ACTIVATION_BITS[self.weight_bits]
        if self.activation_bits is not None and self.activation_bits not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(
                f"activation_bits is {self.activation_bits}; wanted {wanted} where weight_bits is {self.weight_bits}"
            )
        if self.method is None:
            return self
        if self.weight_bits == 16:
            raise ValueError(f"method is {self.method}; wanted none where weight_bits is 16: bfloat16 has no ranges")
        if self.activation_bits is not None and (self.method == "weight_only") == (self.activation_bits == 8):
            wanted = "dynamic or static" if self.activation_bits == 8 else "weight_only"
            raise ValueError(
                f"method is {self.method}; wanted {wanted} where activation_bits is {self.activation_bits}"
            )
        return self

    def without_effect(self) -> list[str]:
        """Return the settings that were given but that the others leave without effect."""
        given = self.model_fields_set - {"weight_bits", "activation_bits", "method"}
        if self.weight_bits == 16:
            return sorted(given)
        idle = {"calibration"} if self.mode != "static" else set()
        return sorted(given & (idle | {"quant_scheme"} if self.mode == "weight_only" else idle))

    def describe(self) -> str:
        """Return what is done, in two words: `int8 dynamic`, `bf16`."""
        return "bf16" if self.weight_bits == 16 else f"int8 {self.mode}"

    @property
    def mode(self) -> Int8Mode:
        """The arithmetic of int8 layers that this config means."""
        return self.method or ("dynamic" if self.activation_bits in (None, 8) else "weight_only")

    @property
    def symmetric(self) -> bool:
        """Whether quantized activations have their zero in the middle."""
        return self.quant_scheme == "symmetric"
