"""The `compress` section of a recipe. Not here: quantization's own config, which this one fills (`QuantConfig`)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deepseek.config import Config
from deepseek.quantization.config import Calibration, QuantConfig


class CompressConfig(Config):
    """How a trained model is made smaller, and how much worse it may become."""

    method: Literal["dynamic", "static", "weight_only", "bf16"] = "dynamic"
    """`dynamic`: int8 weights, activations to int8 for each token. `static`: with calibrated ranges.
    `weight_only`: int8 weights alone. `bf16`: 16-bit floats."""

    quant_scheme: Literal["symmetric", "asymmetric"] | None = None
    """Range of quantized activations: around zero (default), or from smallest to largest."""

    calibration: Calibration | None = None
    """How `static` picks ranges: minmax, percentile, mse (default) or kl."""

    calibration_batches: int = Field(16, ge=1)
    """How many batches `static` looks at."""

    embeddings: bool = True
    """Whether embedding tables become int8 too."""

    skip: list[str] = []
    """Layers to leave as they are: module names, `*` and `?` allowed."""

    max_perplexity_increase: float = Field(0.05, ge=0)
    """Largest accepted increase of perplexity, as a part of the original's (0.05 is 5 %)."""

    latency_prompt: int = Field(64, ge=1)
    """Tokens of the prompt whose time is measured (fewer where the model's context is short)."""

    latency_tokens: int = Field(32, ge=2)
    """Tokens generated after it, each timed (at most half of the context)."""

    latency_repeats: int = Field(3, ge=1)
    """How often that is repeated."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.quant_config()
        return self

    def quant_config(self) -> QuantConfig:
        """Return what to ask of `quantize_model`."""
        if self.method == "bf16":
            return QuantConfig(weight_bits=16)
        values: dict[str, Any] = {"method": self.method, "embeddings": self.embeddings, "skip": self.skip}
        given = {"quant_scheme": self.quant_scheme, "calibration": self.calibration}
        return QuantConfig(**values, **{name: value for name, value in given.items() if value is not None})
