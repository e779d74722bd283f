"""Diffusion and flow matching: noise schedules, training targets, samplers and guidance, for any model that fits.

A predictor is called as `predict(x, timesteps)`: x (batch, channels, ...), timesteps (batch,). It returns the noise in
x (`sample_ddpm`, `sample_ddim`; twice the channels: the variance's place between its bounds as well) or the velocity
from noise to data (`sample_flow`). A conditional model becomes one with `guided`, or with a lambda that adds the
labels. All randomness comes from the tensors and the `torch.Generator` given, which lives on x's device.
Sources: Ho et al. 2020 (DDPM), arXiv:2006.11239; Song et al. 2021 (DDIM), arXiv:2010.02502; Nichol and Dhariwal 2021
(cosine schedule, learned variance), arXiv:2102.09672; Ho and Salimans 2022 (classifier-free guidance),
arXiv:2207.12598; Liu et al. 2022 (rectified flow), arXiv:2209.03003.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ModelError

Predictor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each step adds; step t takes x to sqrt(1 - betas[t]) * x + sqrt(betas[t]) * noise."""

    betas: Tensor
    """(steps,) of float64, each above 0 and below 1."""
    kept: Tensor = field(init=False)
    """(steps,): the share of the data's variance left after step t, the product of 1 - betas up to t."""

    def __post_init__(self) -> None:
        if self.betas.dim() != 1 or not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise ModelError("betas must be one row of numbers between 0 and 1", found=tuple(self.betas.shape))
        object.__setattr__(self, "kept", torch.cumprod(1 - self.betas, dim=0))

    def __len__(self) -> int:
        return self.betas.shape[0]

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
        """Return betas that rise evenly from `first` to `last`, as DDPM and DiT use them."""
        return cls(torch.linspace(first, last, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, highest: float = 0.999) -> NoiseSchedule:
        """Return betas whose `kept` follows a squared cosine from 1 to 0; no beta is above `highest`."""
        place = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset)
        curve = torch.cos(place * math.pi / 2) ** 2
        return cls((1 - curve[1:] / curve[:-1]).clamp(max=highest))


class TrainingExample(NamedTuple):
    """What a model is called with, and what it should answer."""

    x: Tensor
    """The noisy data."""
    timesteps: Tensor
    """(batch,): steps of int64 (diffusion) or times of 0 to 1 (flow)."""
    target: Tensor
    """The noise (diffusion) or the velocity (flow), of x's shape; the loss is the mean squared error."""


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the data after steps 0 to `timesteps` (batch,) of the schedule: a draw of q(x_t | x_0)."""
    kept = _per_sample(schedule.kept, timesteps, clean)
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def diffusion_example(
    schedule: NoiseSchedule, clean: Tensor, generator: torch.Generator | None = None
) -> TrainingExample:
    """Return noisy data at random steps, with the noise as target (the simple loss of DDPM, section 3.4)."""
    batch, device = clean.shape[0], clean.device
    timesteps = torch.randint(len(schedule), (batch,), generator=generator, device=device)
    noise = _noise_like(clean, generator)
    return TrainingExample(add_noise(schedule, clean, noise, timesteps), timesteps, noise)


def flow_example(
    clean: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> TrainingExample:
    """Return points on straight lines from noise (time 0) to data (time 1), with the line's velocity as target.

    `noise` is drawn unless given; given the starts from which a trained flow made `clean`, it straightens that flow.
    """
    times = torch.rand(clean.shape[0], generator=generator, device=clean.device, dtype=clean.dtype)
    start = _noise_like(clean, generator) if noise is None else noise
    time = times.reshape(-1, *[1] * (clean.dim() - 1))
    return TrainingExample(time * clean + (1 - time) * start, times, clean - start)


def drop_labels(labels: Tensor, null_class: int, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Return `labels` (batch,) with a share `rate` of them replaced by the null class: training for `guided`."""
    dropped = torch.rand(labels.shape, generator=generator, device=labels.device) < rate
    return torch.where(dropped, null_class, labels)


def variance_loss(schedule: NoiseSchedule, clean: Tensor, example: TrainingExample, prediction: Tensor) -> Tensor:
    """Return for each sample (batch,) in nats a value how far the predicted step back is from the true one.

    The training signal of a learned variance: the divergence KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)), in which the
    predicted noise counts as fixed (arXiv:2102.09672, section 3.1). `prediction` has twice the channels of `clean`.
    """
    noise, place = _split(example.x, prediction.float())
    if place is None:
        raise ModelError("the prediction says nothing of the variance", wanted="a model with learn_sigma")
    t = example.timesteps
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.kept[:-1]])
    kept, kept_before, beta = (_per_sample(table, t, clean) for table in (schedule.kept, before, schedule.betas))
    small = beta * (1 - kept_before) / (1 - kept)
    low, high = torch.where(t.reshape(kept.shape) > 0, small, beta).log(), beta.log()
    log_variance = low + (place + 1) / 2 * (high - low)
    guess = (example.x - (1 - kept).sqrt() * noise.detach()) / kept.sqrt()
    apart = kept_before.sqrt() * beta / (1 - kept) * (clean - guess)  # of the two means
    divergence = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + apart**2 / log_variance.exp())
    return divergence.flatten(1).mean(dim=1)


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, null_class: int, scale: float
) -> Predictor:
    """Return a predictor of `model(x, timesteps, labels)` that is pushed away from what it says without labels.

    `labels` (batch,). The result is null + scale * (labelled - null): 1 is the plain conditional model. A predicted
    variance is the labelled one. Every call runs the model once, on a batch of twice the size.
    """

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        if scale == 1:
            return model(x, timesteps, labels)
        both = torch.cat([labels, torch.full_like(labels, null_class)])
        labelled, null = model(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both).chunk(2)
        channels = x.shape[1]
        moved = null[:, :channels] + scale * (labelled[:, :channels] - null[:, :channels])
        return torch.cat([moved, labelled[:, channels:]], dim=1)

    return predict


@torch.no_grad()
def sample_ddpm(
    predict: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    steps: int | None = None,
    variance: Literal["small", "large"] = "small",
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return samples made from noise `x` (batch, channels, ...) by steps that add noise again.

    `steps`: how many of the schedule's are walked, evenly spread (None: all). `variance` of a step where the model
    predicts none: that of the true step back ("small"), or beta ("large"). `clip`: bound on the data's values.
    """
    for now in _steps(schedule, steps or len(schedule)):
        noise, place = _predict(predict, x, now.timestep)
        clean, noise = _clean(x, noise, now.kept, clip)
        beta = 1 - now.kept / now.kept_before
        mean = math.sqrt(now.kept_before) * beta * clean + math.sqrt(1 - beta) * (1 - now.kept_before) * x
        x = mean / (1 - now.kept)
        if now.last:
            break
        small = beta * (1 - now.kept_before) / (1 - now.kept)
        if place is None:
            deviation: float | Tensor = math.sqrt(small if variance == "small" else beta)
        else:
            deviation = (0.5 * (math.log(small) + (place + 1) / 2 * math.log(beta / small))).exp()
        x = x + deviation * _noise_like(x, generator)
    return x


@torch.no_grad()
def sample_ddim(
    predict: Predictor,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return samples made from noise `x` (batch, channels, ...) by steps that can be few.

    With `eta` 0 nothing is random and equal noise gives equal samples; with 1 the steps are those of `sample_ddpm`
    (small variance). `clip`: bound on the data's values. A predicted variance is not used.
    """
    for now in _steps(schedule, steps):
        noise, _ = _predict(predict, x, now.timestep)
        clean, noise = _clean(x, noise, now.kept, clip)
        added = eta**2 * (1 - now.kept_before) / (1 - now.kept) * (1 - now.kept / now.kept_before)
        x = math.sqrt(now.kept_before) * clean + math.sqrt(max(1 - now.kept_before - added, 0.0)) * noise
        if added and not now.last:
            x = x + math.sqrt(added) * _noise_like(x, generator)
    return x


@torch.no_grad()
def sample_flow(predict: Predictor, x: Tensor, *, steps: int = 50) -> Tensor:
    """Return samples made from noise `x` (batch, channels, ...) along predicted velocities: Euler steps, time 0 to 1.

    The predictor gets times i / steps as floats, and returns velocities of x's shape.
    """
    if steps < 1:
        raise ModelError("a sampler needs steps", found=steps, wanted="1 or more")
    for step in range(steps):
        times = torch.full((x.shape[0],), step / steps, device=x.device, dtype=x.dtype)
        velocity = predict(x, times)
        if velocity.shape != x.shape:
            raise ModelError("a velocity has the data's shape", found=tuple(velocity.shape), wanted=tuple(x.shape))
        x = x + velocity / steps
    return x


class _Step(NamedTuple):
    timestep: int
    kept: float
    kept_before: float
    last: bool


def _steps(schedule: NoiseSchedule, count: int) -> Iterator[_Step]:
    """Yield `count` steps of the schedule, evenly spread, the noisiest first; both ends are among them."""
    if not 1 <= count <= len(schedule):
        raise ModelError("a sampler can't take this many steps", found=count, wanted=f"1 to {len(schedule)}")
    walked = torch.linspace(len(schedule) - 1, 0, count, dtype=torch.float64).round().long().tolist()
    kept = schedule.kept.tolist()
    for timestep, following in zip(walked, [*walked[1:], None], strict=True):
        yield _Step(timestep, kept[timestep], 1.0 if following is None else kept[following], following is None)


def _predict(predict: Predictor, x: Tensor, timestep: int) -> tuple[Tensor, Tensor | None]:
    return _split(x, predict(x, torch.full((x.shape[0],), timestep, device=x.device)))


def _split(x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the noise, and the variance's place between its bounds (-1 to 1) if it was predicted."""
    channels = x.shape[1]
    if prediction.shape[1] not in (channels, 2 * channels) or prediction.shape[2:] != x.shape[2:]:
        raise ModelError(
            "a prediction has the data's shape, or twice its channels",
            found=tuple(prediction.shape),
            wanted=tuple(x.shape),
        )
    return prediction[:, :channels], prediction[:, channels:] if prediction.shape[1] > channels else None


def _clean(x: Tensor, noise: Tensor, kept: float, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the data that `x` is made of by the predicted noise, inside its bounds, and the noise that fits it."""
    clean = (x - math.sqrt(1 - kept) * noise) / math.sqrt(kept)
    if clip is None:
        return clean, noise
    clean = clean.clamp(-clip, clip)
    return clean, (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _per_sample(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """Return the table's values at `timesteps` (batch,), shaped to broadcast over `like` (batch, ...)."""
    values = table.to(timesteps.device)[timesteps].to(torch.float32 if like.itemsize < 4 else like.dtype)
    return values.reshape(-1, *[1] * (like.dim() - 1))
