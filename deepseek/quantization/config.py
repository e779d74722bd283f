"""What to quantize and how, as one typed config. Not here: doing it (`quantize.py`)."""

from __future__ import annotations

import fnmatch
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deepseek.config import Config
from deepseek.nn.int8_linear import Int8Mode

Calibration = Literal["minmax", "moving_average", "percentile", "mse", "kl", "best"]
Granularity = Literal["per_channel", "per_tensor", "per_group"]
Algorithm = Literal["rtn", "gptq", "awq", "adaround", "smoothquant"]
Method = Literal["dynamic", "static", "weight_only", "qat"]
Scheme = Literal["symmetric", "asymmetric"]

_NAMES = {8: "int8", 4: "int4", 2: "ternary", 1: "binary"}
_ACTIVATION_BITS = {16: (16,), 8: (8, 16, 32), 4: (16, 32), 2: (16, 32), 1: (1, 16, 32)}
_ALGORITHMS: dict[int, tuple[Algorithm, ...]] = {
    16: ("rtn",),
    8: ("rtn", "adaround", "smoothquant"),
    4: ("rtn", "gptq", "awq"),
    2: ("rtn",),
    1: ("rtn",),
}


class LayerSettings(Config):
    """What differs for some layers; unset values are those of the whole config."""

    weight_bits: int | None = None
    """Bits of a stored weight. 16 leaves the layer in the model's floating point."""

    activation_bits: int | None = None
    """Bits of the layer's input."""

    quant_scheme: Scheme | None = None
    """Range of quantized activations."""

    method: Literal["dynamic", "static", "weight_only"] | None = None
    """The layer's arithmetic."""

    calibration: Calibration | None = None
    """How a static range is picked."""

    granularity: Granularity | None = None
    """How many weights share a scale."""

    group_size: int | None = Field(None, ge=2)
    """Weights of one row that share a scale, for `per_group`."""

    algorithm: Algorithm | None = None
    """How weights are rounded."""

    bias_correction: bool | None = None
    """Whether the layer's bias takes up the mean error."""

    def given(self) -> dict[str, Any]:
        """Return the values that are set."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class QuantConfig(Config):
    """How `quantize_model` quantizes. Raises ConfigError for combinations that make no sense."""

    weight_bits: int = 8
    """Bits of a stored weight: 8 (int8), 16 (`half`), 4 (int4), 2 (ternary: -1, 0, 1) or 1 (binary: -1, 1)."""

    half: Literal["bf16", "fp16"] = "bf16"
    """Floats of 16 bits: bfloat16 has float32's range, float16 three bits more of each number (up to 65,504)."""

    activation_bits: int | None = None
    """Bits of a layer's input: 8 (quantized when the layer runs), 16 or 32 (left as the model computes them), or 1
    (signs, with binary weights). Unset: what `method` needs."""

    quant_scheme: Scheme = "symmetric"
    """Range of quantized activations: around zero, or from their smallest to their largest. Int8 weights are always
    symmetric; int4 weights have no other range, so it is theirs."""

    method: Method | None = None
    """`dynamic` (ranges for each token at run time), `static` (calibrated once), `weight_only` (float activations) or
    `qat` (a model to train, static after it). Unset: `weight_only` below 8 weight bits or with 16 or 32 activation
    bits, else `dynamic`."""

    calibration: Calibration = "mse"
    """How `static` picks a range from what it saw: all of it, a moving average of each batch's ends, all but 0.01 %,
    least squared error, least Kullback-Leibler divergence, or `best`: for each layer what leaves its output nearest."""

    granularity: Granularity = "per_channel"
    """How many weights share a scale: an output channel, the whole tensor, or `group_size` weights of a row
    (weight-only; what 4 bits use unless told otherwise)."""

    group_size: int = Field(128, ge=2)
    """Weights of one row that share a scale, for `per_group`; the last group of a row may be shorter."""

    algorithm: Algorithm = "rtn"
    """How weights are rounded: `rtn` to the nearest; `adaround` (8 bits) and `gptq` (4) so that the layer's output
    keeps; `awq` (4) and `smoothquant` (8, dynamic or static) after scaling channels that matter."""

    bias_correction: bool = False
    """Whether a layer's bias takes up the mean error that quantization left in its outputs. Needs data."""

    fold_norms: bool = True
    """Whether `static` first folds each batch norm into the convolution or linear layer before it."""

    embeddings: bool = True
    """Whether embedding tables become int8 too. A table shared with the output layer is stored once for both."""

    skip: list[str] = []
    """Layers to leave as they are: module names, `*` and `?` allowed."""

    layers: dict[str, LayerSettings] = {}
    """Settings of their own for some layers, by module name, `*` and `?` allowed; a later match wins."""

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.weight_bits not in _ACTIVATION_BITS:
            raise ValueError(
                f"weight_bits is {self.weight_bits}; wanted 8 (int8), 16 (16-bit floats), 4, 2 (ternary) or 1 (binary)"
            )
        self._check_activation_bits()
        self._check_method()
        if self.algorithm not in _ALGORITHMS[self.weight_bits]:
            bits = [str(bits) for bits, names in _ALGORITHMS.items() if self.algorithm in names]
            raise ValueError(
                f"algorithm is {self.algorithm} with weight_bits {self.weight_bits}; it is for {' or '.join(bits)}"
            )
        if self.algorithm == "smoothquant" and self.mode == "weight_only":
            raise ValueError("algorithm is smoothquant with float activations; wanted method dynamic or static")
        if self.weight_bits == 4 and "granularity" not in self.model_fields_set:
            self.__dict__["granularity"] = "per_group"
        if self.weight_bits == 8 and self.granularity == "per_group" and self.mode != "weight_only":
            raise ValueError(f"granularity is per_group with {self.mode}; wanted method weight_only")
        if self.layers and self.weight_bits == 16:
            raise ValueError("layers are set with weight_bits 16; wanted 8 and, for single layers, weight_bits 16")
        for name in self.layers:
            self.for_layer(name)
        return self

    def _check_activation_bits(self) -> None:
        allowed = _ACTIVATION_BITS[self.weight_bits]
        if self.activation_bits is not None and self.activation_bits not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(
                f"activation_bits is {self.activation_bits}; wanted {wanted} where weight_bits is {self.weight_bits}"
            )

    def _check_method(self) -> None:
        if self.method is None:
            return
        if self.weight_bits == 16:
            raise ValueError(f"method is {self.method}; wanted none where weight_bits is 16: floats have no ranges")
        if self.weight_bits < 8 and self.method in ("dynamic", "static"):
            raise ValueError(
                f"method is {self.method}; wanted weight_only or qat where weight_bits is {self.weight_bits}"
            )
        if self.weight_bits != 8 or self.activation_bits is None:
            return
        if (self.method == "weight_only") == (self.activation_bits == 8):
            wanted = "dynamic or static" if self.activation_bits == 8 else "weight_only"
            raise ValueError(
                f"method is {self.method}; wanted {wanted} where activation_bits is {self.activation_bits}"
            )

    def for_layer(self, name: str) -> QuantConfig:
        """Return the config of the layer of this name: with what `layers` says of it, and without `layers`.

        Where it changes the bits, settings that only suit the other bits fall back to their defaults.
        """
        values = {field: getattr(self, field) for field in self.model_fields_set - {"layers"}}
        found = [
            s.given() for pattern, s in self.layers.items() if fnmatch.fnmatchcase(name, pattern) or pattern == name
        ]
        if not found:
            return self
        for changes in found:
            dropped: set[str] = set()
            if changes.get("weight_bits", values.get("weight_bits", 8)) != values.get("weight_bits", 8):
                dropped = {"method", "activation_bits", "granularity", "algorithm"}
            elif {"method", "activation_bits"} & set(changes):
                dropped = {"method", "activation_bits"}
            values = {field: value for field, value in values.items() if field not in dropped} | changes
        return QuantConfig(**values)

    def without_effect(self) -> list[str]:
        """Return the settings that were given but that the others leave without effect."""
        given = self.model_fields_set - {"weight_bits", "activation_bits", "method", "layers"}
        if self.weight_bits == 16:
            return sorted(given - {"half"})
        idle: set[str] = {"half"}
        configs = [self, *(self.for_layer(pattern) for pattern in self.layers)]
        if all(config.mode != "static" for config in configs):
            idle |= {"calibration", "fold_norms"}
        if all(config.mode == "weight_only" and config.weight_bits != 4 for config in configs):
            idle |= {"quant_scheme"}
        if all(config.granularity != "per_group" for config in configs):
            idle |= {"group_size"}
        return sorted(given & idle)

    def describe(self) -> str:
        """Return what is done, in two words: `int8 dynamic`, `bf16`, `int4`."""
        name = self.half if self.weight_bits == 16 else _NAMES[self.weight_bits]
        return f"{name} {self.method if self.method == 'qat' else self.mode}" if self.weight_bits == 8 else name

    @property
    def mode(self) -> Int8Mode:
        """The arithmetic of quantized layers that this config means."""
        if self.method == "qat":
            return "static" if self.weight_bits == 8 else "weight_only"
        if self.weight_bits < 8:
            return "weight_only"
        return self.method or ("dynamic" if self.activation_bits in (None, 8) else "weight_only")

    @property
    def needs_data(self) -> bool:
        """Whether the model has to be run on examples: for ranges, or for how weights are rounded."""
        configs = [self, *(self.for_layer(pattern) for pattern in self.layers)]
        return any(one.mode == "static" or one.algorithm != "rtn" or one.bias_correction for one in configs)

    @property
    def symmetric(self) -> bool:
        """Whether quantized activations have their zero in the middle."""
        return self.quant_scheme == "symmetric"
