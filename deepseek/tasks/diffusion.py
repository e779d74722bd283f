"""Diffusion and flow matching: make images (or latents) out of noise.

Batches: `latents` or `pixel_values` (batch, channels, height, width), about zero mean and unit deviation, and `labels`
(batch,) int64 where the model takes classes. The model is called as a `deepseek.models.dit.DiT` is: noisy data,
timesteps (batch,), labels. With "flow" times run from 0 to 1: build the DiT with `timestep_scale: 1000`.
Sources: Ho et al. 2020 (noise), arXiv:2006.11239; Salimans and Ho 2022 (velocity, appendix D), arXiv:2202.00512; Liu
et al. 2022 (flow), arXiv:2209.03003; Nichol and Dhariwal 2021 (learned variance), arXiv:2102.09672.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError, ModelError
from deepseek.models.diffusion import (
    NoiseSchedule,
    Predictor,
    TrainingExample,
    diffusion_example,
    drop_labels,
    flow_example,
    guided,
    sample_ddim,
    sample_flow,
    variance_loss,
)
from deepseek.tasks.task import Batch, Loss, LossSum

Objective = Literal["noise", "velocity", "flow"]
ScheduleName = Literal["linear", "cosine"]
_EVALUATION_SEED = 20_200_619


class Diffusion:
    """Mean squared error of what `objective` asks for, summed over the samples, at random steps.

    "noise" and "velocity" use a noise `schedule` of `steps`; "flow" learns the velocity of straight lines and uses
    neither. `label_dropout` is the share of labels replaced by the null class in training, which guidance needs. A
    model that predicts a variance (`learn_sigma`, "noise" only) is also trained on its divergence, times
    `variance_weight`. `predict` walks `sample_steps` steps and guides by `guidance` (1: not). Raises ConfigError.
    """

    name = "diffusion"

    def __init__(
        self,
        objective: Objective = "noise",
        schedule: ScheduleName = "linear",
        steps: int = 1000,
        label_dropout: float = 0.1,
        variance_weight: float = 1.0,
        sample_steps: int = 50,
        guidance: float = 1.0,
    ) -> None:
        for key, value, known in (("objective", objective, Objective), ("schedule", schedule, ScheduleName)):
            if value not in get_args(known):
                raise ConfigError(f"unknown {key}", found=repr(value), wanted=", ".join(map(repr, get_args(known))))
        for key, number in (("steps", steps), ("sample_steps", sample_steps)):
            if number < 1:
                raise ConfigError(f"{key} is too small", found=number, wanted="at least 1")
        if objective != "flow" and sample_steps > steps:
            raise ConfigError("sample_steps is too large", found=sample_steps, wanted=f"at most steps = {steps}")
        if not 0 <= label_dropout <= 1:
            raise ConfigError("label_dropout is a share", found=label_dropout, wanted="0 to 1")
        if not variance_weight >= 0:
            raise ConfigError("variance_weight is a weight", found=variance_weight, wanted="0 or more")
        self.objective = objective
        self.schedule = NoiseSchedule.linear(steps) if schedule == "linear" else NoiseSchedule.cosine(steps)
        self.label_dropout, self.variance_weight = label_dropout, variance_weight
        self.sample_steps, self.guidance = sample_steps, guidance

    def count(self, batch: Batch) -> int:
        """Return the number of samples."""
        return len(_clean(batch))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss summed over the samples, and their number. Raises DataError for a batch without data."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone; steps and noise come from torch's global generator."""
        return self.losses(model, batch).sum()

    def losses(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of each sample, (batch,) of float32. Raises ModelError for a prediction of another shape."""
        clean, labels = _clean(batch).float(), batch.get("labels")
        example = self._example(clean, generator)
        null = _null_class(model)
        if labels is not None and null is not None and model.training and self.label_dropout:
            labels = drop_labels(labels, null, self.label_dropout, generator)
        prediction: Tensor = model(example.x, example.timesteps, *([] if labels is None else [labels]))
        channels = clean.shape[1]
        twice = prediction.shape[1] == 2 * channels and self.objective == "noise"
        if prediction.shape != clean.shape and not twice:
            raise ModelError(
                f"a prediction for the objective {self.objective!r} has the data's shape",
                found=tuple(prediction.shape),
                wanted=tuple(clean.shape),
                fix="build the model with learn_sigma: false" if prediction.shape[1] == 2 * channels else None,
            )
        losses = (prediction[:, :channels].float() - example.target).square().flatten(1).mean(dim=1)
        if twice and self.variance_weight:
            losses = losses + self.variance_weight * variance_loss(self.schedule, clean, example, prediction)
        return losses

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def evaluator(self) -> DiffusionEvaluator:
        """Return what measures the loss with noise and steps that are the same in every evaluation."""
        return DiffusionEvaluator(self)

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return a sample for each of the labels (batch,), or for a mapping with `labels`, `noise` or both.

        Samples have the shape of `noise` (batch, channels, height, width), or that of the model's config; noise that
        is not given is the same each time.
        """
        given = {"labels": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        labels = given.get("labels")
        with torch.inference_mode():
            noise = given["noise"] if "noise" in given else _noise(model, labels)
            predict = self._predictor(model, labels)
            if self.objective == "flow":
                return sample_flow(predict, noise, steps=self.sample_steps)
            return sample_ddim(predict, self.schedule, noise, steps=self.sample_steps)

    def _example(self, clean: Tensor, generator: torch.Generator | None) -> TrainingExample:
        if self.objective == "flow":
            return flow_example(clean, generator)
        example = diffusion_example(self.schedule, clean, generator)
        if self.objective == "noise":
            return example
        kept = self._kept(example.timesteps, clean)
        return example._replace(target=kept.sqrt() * example.target - (1 - kept).sqrt() * clean)

    def _predictor(self, model: nn.Module, labels: Tensor | None) -> Predictor:
        null = _null_class(model)
        if labels is None:
            predict: Predictor = model
        elif null is None:
            predict = lambda x, timesteps: model(x, timesteps, labels)  # noqa: E731
        else:
            predict = guided(model, labels, null, self.guidance)
        if self.objective != "velocity":
            return predict

        def noise_of(x: Tensor, timesteps: Tensor) -> Tensor:
            kept = self._kept(timesteps, x)
            return kept.sqrt() * predict(x, timesteps) + (1 - kept).sqrt() * x

        return noise_of

    def _kept(self, timesteps: Tensor, like: Tensor) -> Tensor:
        kept = self.schedule.kept.to(timesteps.device)[timesteps].to(like.dtype)
        return kept.reshape(-1, *[1] * (like.dim() - 1))


class DiffusionEvaluator:
    """Measures `loss`: batch i always has the same noise and steps, so that two evaluations compare."""

    def __init__(self, task: Diffusion) -> None:
        self._task, self._loss, self._batches = task, LossSum(), 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        device = _clean(batch).device
        generator = torch.Generator(device).manual_seed(_EVALUATION_SEED + self._batches)
        self._batches += 1
        self._loss.add(self._task.losses(model, batch, generator).sum(), self._task.count(batch))

    def result(self) -> dict[str, float]:
        """Return the loss. Raises DataError when there was no sample."""
        return self._task.metrics(self._loss.mean())


def _clean(batch: Batch) -> Tensor:
    for key in ("latents", "pixel_values"):
        if key in batch:
            if batch[key].dim() < 3 or not batch[key].is_floating_point():
                raise DataError(
                    f"{key} must be images",
                    found=f"{tuple(batch[key].shape)} of {batch[key].dtype}",
                    wanted="(batch, channels, height, width), floating point",
                )
            return batch[key]
    raise DataError("the batch has no data", found=f"keys {', '.join(sorted(batch))}", wanted="latents or pixel_values")


def _null_class(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    return int(config.num_classes) if getattr(config, "null_class", False) else None


def _noise(model: nn.Module, labels: Tensor | None) -> Tensor:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "latent_size") or not hasattr(config, "num_channels"):
        raise ModelError(
            "the size of a sample is not known", found=type(model).__name__, fix="give `noise` of the samples' shape"
        )
    count = 1 if labels is None else len(labels)
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.num_channels, config.latent_size, config.latent_size)
    return torch.randn(shape, generator=generator).to(weight.device)
