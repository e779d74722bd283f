"""The `compress` section of a recipe. Not here: quantization's own config, which this one fills (`QuantConfig`)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deepseek.compress.budget import Budget
from deepseek.compress.units import Drop, parse_drop
from deepseek.config import Config
from deepseek.errors import ConfigError
from deepseek.quantization.config import Calibration, QuantConfig

Method = Literal["dynamic", "static", "weight_only", "bf16", "fp16", "int4", "qat", "mixed"]


class CompressConfig(Config):
    """How a trained model is made smaller, and how much worse it may become."""

    method: Method = "dynamic"
    """`dynamic`: int8 weights, activations to int8 for each token. `static`: with calibrated ranges. `weight_only`:
    int8 weights alone. `bf16`, `fp16`: 16-bit floats. `int4`: 4-bit weights in groups. `qat`: int8 learned in a short
    training. `mixed`: for each layer float, int8 or int4, by its measured sensitivity."""

    quant_scheme: Literal["symmetric", "asymmetric"] | None = None
    """Range of quantized activations: around zero, or from smallest to largest. Unset: the latter where ranges are
    fixed (`static`, `qat`), for none of their 256 levels is lost on what never occurs; else around zero."""

    calibration: Calibration | None = None
    """How `static` picks ranges: minmax, moving_average, percentile, mse (default), kl or best."""

    calibration_batches: int = Field(16, ge=1)
    """How many batches `static` looks at."""

    embeddings: bool = True
    """Whether embedding tables become int8 too."""

    skip: list[str] = []
    """Layers to leave as they are: module names, `*` and `?` allowed."""

    max_drop: str | float | None = None
    """Largest accepted loss of the task's main figure: a share of the original's value (1%), or an amount in the
    figure's own units (0.01). Unset: 1%, and for perplexity max_perplexity_increase."""

    max_perplexity_increase: float = Field(0.05, ge=0)
    """Largest accepted increase of perplexity, as a part of the original's (0.05 is 5 %), where max_drop is unset."""

    size: str | None = None
    """Largest size of the weights on disk (1.2MB). With this or `latency`, a search decides what is done to the model:
    pruning, distillation, number formats and runtime."""

    latency: str | None = None
    """Longest median time of one sample on this machine (20ms)."""

    time: str = "10m"
    """How long the search may take; what it measured stays, and a second call goes on."""

    thorough: bool = False
    """Whether the search walks every step of the ladder, not only as far as the first that meets the budget."""

    runtimes: list[str] = Field(default=["eager", "onnxruntime", "openvino"], min_length=1)
    """What a search tries its candidates on, of what is installed; `eager` alone exports nothing."""

    training_steps: int = Field(300, ge=1)
    """Most optimizer steps of each short training: recovery after pruning, and `qat`."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of those trainings; unset is a third of the one that the run's recipe trained with."""

    max_batches: int | None = Field(None, ge=1)
    """Most validation batches that each form is measured on; null is all (for language models 32)."""

    latency_prompt: int = Field(64, ge=1)
    """Tokens of the prompt whose time is measured (fewer where the model's context is short)."""

    latency_tokens: int = Field(32, ge=2)
    """Tokens generated after it, each timed (at most half of the context)."""

    latency_repeats: int = Field(3, ge=1)
    """How often that is repeated."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.quant_config()
            self.allowed_drop("loss")
            self.budget()
        except ConfigError as error:  # pydantic says where it stands
            raise ValueError(f"{error.problem}; found {error.found}, wanted {error.wanted}") from None
        return self

    def quant_config(self) -> QuantConfig:
        """Return what to ask of `quantize_model`; for `mixed` what its layers are searched around."""
        if self.method in ("bf16", "fp16"):
            return QuantConfig.model_validate({"weight_bits": 16, "half": self.method})
        if self.method == "int4":
            return QuantConfig(weight_bits=4, embeddings=self.embeddings, skip=self.skip)
        mode = "weight_only" if self.method == "mixed" else self.method
        scheme = self.quant_scheme or ("asymmetric" if mode in ("static", "qat") else None)
        values: dict[str, Any] = {"method": mode, "embeddings": self.embeddings, "skip": self.skip}
        given = {"quant_scheme": scheme, "calibration": self.calibration}
        return QuantConfig(**values, **{name: value for name, value in given.items() if value is not None})

    def allowed_drop(self, metric: str) -> Drop:
        """Return how much worse the figure `metric` may be."""
        if self.max_drop is not None:
            return parse_drop(self.max_drop)
        return Drop(self.max_perplexity_increase if metric == "perplexity" else 0.01, relative=True)

    def after_training(self, learning_rate: float) -> Self:
        """Return the settings for a model that was trained at this rate: where none is set, a third of it."""
        return self if self.learning_rate is not None else self.replace(learning_rate=learning_rate / 3)

    def budget(self) -> Budget | None:
        """Return what the search must meet; None where no size and no latency is asked for."""
        if self.size is None and self.latency is None:
            return None
        return Budget.parse(self.size, self.latency, self.time)
