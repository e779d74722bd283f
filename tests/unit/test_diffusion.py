"""Samplers against closed forms: for Gaussian data the best possible prediction, and where it leads, are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.diffusion import (
    NoiseSchedule,
    Predictor,
    TrainingExample,
    add_noise,
    diffusion_example,
    drop_labels,
    flow_example,
    guided,
    sample_ddim,
    sample_ddpm,
    sample_flow,
    variance_loss,
)

MEAN, SPREAD = 1.5, 0.4
LINEAR = NoiseSchedule.linear()


def gaussian_noise(schedule: NoiseSchedule) -> Predictor:
    """The expected noise in x at a step, for data of N(MEAN, SPREAD^2): the exact score times -sqrt(1 - kept)."""

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        kept = float(schedule.kept[timesteps[0]])
        variance = kept * SPREAD**2 + 1 - kept
        return math.sqrt(1 - kept) * (x - math.sqrt(kept) * MEAN) / variance

    return predict


def gaussian_velocity(x: Tensor, times: Tensor) -> Tensor:
    """The expected velocity at x and a time, for data of N(MEAN, SPREAD^2)."""
    t = float(times[0])
    variance = (t * SPREAD) ** 2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2, 2, 5, dtype=dtype).reshape(5, 1, 1)


def where_the_flow_leads(x: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The exact end of the probability flow: quantile to quantile, from the last step's distribution to the data's."""
    kept = float(schedule.kept[-1])
    return MEAN + SPREAD * (x - math.sqrt(kept) * MEAN) / math.sqrt(kept * SPREAD**2 + 1 - kept)


def test_linear_schedule_is_the_one_of_the_paper() -> None:
    assert len(LINEAR) == 1000
    assert float(LINEAR.betas[0]) == pytest.approx(1e-4)
    assert float(LINEAR.betas[-1]) == pytest.approx(0.02)
    kept = 1.0
    for step in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
    assert float(LINEAR.kept[-1]) == pytest.approx(kept, rel=1e-9)


def test_cosine_schedule_is_the_formula_of_the_paper() -> None:
    schedule = NoiseSchedule.cosine(100)

    def curve(t: float) -> float:
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    for step in (0, 10, 50, 98):
        assert float(schedule.kept[step]) == pytest.approx(curve(step + 1) / curve(0), rel=1e-9)
    assert float(schedule.betas[-1]) == pytest.approx(0.999)


def test_betas_outside_their_range_are_refused() -> None:
    for betas in (torch.tensor([0.1, 1.0]), torch.tensor([0.0, 0.1]), torch.tensor([[0.1]])):
        with pytest.raises(ModelError, match="betas"):
            NoiseSchedule(betas)


def test_noise_in_one_go_has_the_moments_of_many_single_steps() -> None:
    schedule, count = NoiseSchedule.linear(20, 0.01, 0.3), 40_000
    generator = torch.Generator().manual_seed(0)
    x = MEAN + SPREAD * torch.randn(count, 1, generator=generator)
    start = x.clone()
    for beta in schedule.betas.tolist():
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * torch.randn(x.shape, generator=generator)
    at_once = add_noise(schedule, start, torch.randn(x.shape, generator=generator), torch.full((count,), 19))
    kept = float(schedule.kept[-1])
    for found in (x, at_once):
        assert float(found.mean()) == pytest.approx(math.sqrt(kept) * MEAN, abs=0.02)
        assert float(found.var()) == pytest.approx(kept * SPREAD**2 + 1 - kept, abs=0.03)


def test_each_sample_has_its_own_step() -> None:
    clean, noise = torch.ones(3, 2, 2), torch.full((3, 2, 2), 2.0)
    found = add_noise(LINEAR, clean, noise, torch.tensor([0, 500, 999]))
    for row, step in enumerate((0, 500, 999)):
        kept = float(LINEAR.kept[step])
        torch.testing.assert_close(found[row], torch.full((2, 2), math.sqrt(kept) + 2 * math.sqrt(1 - kept)))


@pytest.mark.parametrize(("steps", "tolerance"), [(1000, 0.01), (100, 0.05), (20, 0.15)])
def test_ddim_follows_the_flow_of_a_gaussian(steps: int, tolerance: float) -> None:
    found = sample_ddim(gaussian_noise(LINEAR), LINEAR, points(), steps=steps)
    torch.testing.assert_close(found, where_the_flow_leads(points(), LINEAR), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("steps", "tolerance"), [(1000, 0.002), (100, 0.02), (20, 0.08)])
def test_flow_follows_the_flow_of_a_gaussian(steps: int, tolerance: float) -> None:
    found = sample_flow(gaussian_velocity, points(), steps=steps)
    torch.testing.assert_close(found, MEAN + SPREAD * points(), atol=tolerance, rtol=0)


def test_one_euler_step_is_enough_where_lines_are_straight() -> None:
    torch.testing.assert_close(sample_flow(lambda x, t: torch.full_like(x, 3.0), points(), steps=1), points() + 3)


@pytest.mark.parametrize("steps", [None, 100])
def test_ddpm_gives_mean_and_variance_of_a_gaussian(steps: int | None) -> None:
    schedule = NoiseSchedule.linear(400, 2.5e-4, 0.05)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, generator=generator)
    found = sample_ddpm(gaussian_noise(schedule), schedule, start, steps=steps, generator=generator)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.04 if steps is None else 0.1)


def test_ddim_with_full_noise_is_ddpm() -> None:
    schedule, start = NoiseSchedule.linear(50, 0.001, 0.2), torch.randn(7, 2, 3, dtype=torch.float64)
    predict = gaussian_noise(schedule)
    for clip in (None, 0.8):
        ddpm = sample_ddpm(predict, schedule, start, clip=clip, generator=torch.Generator().manual_seed(3))
        ddim = sample_ddim(
            predict, schedule, start, steps=50, eta=1.0, clip=clip, generator=torch.Generator().manual_seed(3)
        )
        torch.testing.assert_close(ddpm, ddim)


def test_equal_seeds_give_equal_samples_and_other_seeds_do_not() -> None:
    schedule, start = NoiseSchedule.linear(10, 0.01, 0.5), torch.randn(4, 1, 2)

    def sample(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample_ddpm(gaussian_noise(schedule), schedule, start, generator=generator)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    once, twice = (sample_ddim(gaussian_noise(schedule), schedule, start, steps=5) for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize(("place", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_a_predicted_variance_reaches_both_bounds(place: float, variance: str) -> None:
    schedule, start = NoiseSchedule.linear(30, 0.001, 0.2), torch.randn(6, 1, 4, dtype=torch.float64)
    predict = gaussian_noise(schedule)

    def with_variance(x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.cat([predict(x, timesteps), torch.full_like(x, place)], dim=1)

    learned = sample_ddpm(with_variance, schedule, start, generator=torch.Generator().manual_seed(0))
    fixed = sample_ddpm(
        predict,
        schedule,
        start,
        variance="small" if variance == "small" else "large",
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(learned, fixed)


def test_clipping_bounds_the_data() -> None:
    found = sample_ddim(gaussian_noise(LINEAR), LINEAR, points() * 5, steps=10, clip=1.0)
    assert float(found.abs().max()) <= 1.0


def test_walked_steps_are_spread_from_end_to_end() -> None:
    seen: list[int] = []

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(int(timesteps[0]))
        return torch.zeros_like(x)

    sample_ddim(predict, LINEAR, points(), steps=4)
    assert seen == [999, 666, 333, 0]
    for wrong in (0, 1001):
        with pytest.raises(ModelError, match="steps"):
            sample_ddim(predict, LINEAR, points(), steps=wrong)
    with pytest.raises(ModelError, match="steps"):
        sample_flow(predict, points(), steps=0)


def test_predictions_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="shape"):
        sample_ddim(lambda x, t: x[..., :0], LINEAR, points())
    with pytest.raises(ModelError, match="shape"):
        sample_flow(lambda x, t: torch.cat([x, x], 1), points())


def test_targets_of_training() -> None:
    clean = torch.randn(50, 3, 2)
    example = diffusion_example(LINEAR, clean, torch.Generator().manual_seed(0))
    assert torch.equal(example.x, add_noise(LINEAR, clean, example.target, example.timesteps))
    assert int(example.timesteps.min()) >= 0
    assert int(example.timesteps.max()) < 1000
    flow = flow_example(clean, torch.Generator().manual_seed(0))
    time = flow.timesteps.reshape(-1, 1, 1)
    torch.testing.assert_close(flow.x + (1 - time) * flow.target, clean)  # at time 1 the line is at the data
    start = torch.randn_like(clean)
    assert torch.equal(flow_example(clean, noise=start).target, clean - start)


def test_dropped_labels_are_the_wanted_share() -> None:
    labels = torch.zeros(10_000, dtype=torch.int64)
    found = drop_labels(labels, 7, 0.1, torch.Generator().manual_seed(0))
    assert set(found.tolist()) == {0, 7}
    assert float((found == 7).float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_moves_from_no_label_past_the_label(scale: float) -> None:
    def model(x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        value = labels.reshape(-1, 1, 1).to(x.dtype) * x
        return torch.cat([value, labels.reshape(-1, 1, 1).expand_as(x).to(x.dtype)], dim=1)

    x, labels = torch.randn(3, 2, 4), torch.tensor([1, 2, 3])
    found = guided(model, labels, null_class=9, scale=scale)(x, torch.zeros(3))
    weight = 9 + scale * (labels - 9).float()
    torch.testing.assert_close(found[:, :2], weight.reshape(-1, 1, 1) * x)
    assert torch.equal(found[:, 2:], labels.reshape(-1, 1, 1).expand_as(x).float())  # the variance: the label's own


def test_loss_of_the_variance_is_the_divergence_of_two_gaussians() -> None:
    schedule = NoiseSchedule.linear(30, 0.001, 0.2)
    clean, noise, place = torch.randn(4, 1, 3), torch.randn(4, 1, 3), torch.rand(4, 1, 3) * 2 - 1
    timesteps = torch.tensor([1, 5, 17, 29])
    x = add_noise(schedule, clean, torch.randn(4, 1, 3), timesteps)
    guess = noise.clone().requires_grad_()
    place.requires_grad_()
    found = variance_loss(schedule, clean, TrainingExample(x, timesteps, noise), torch.cat([guess, place], dim=1))
    for row, t in enumerate(timesteps.tolist()):
        beta, kept, before = (float(v) for v in (schedule.betas[t], schedule.kept[t], schedule.kept[t - 1]))
        small = beta * (1 - before) / (1 - kept)

        def mean(data: Tensor, row: int = row, b: float = beta, k: float = kept, p: float = before) -> Tensor:
            return (math.sqrt(p) * b * data + math.sqrt(1 - b) * (1 - p) * x[row]) / (1 - k)

        predicted = mean((x[row] - math.sqrt(1 - kept) * noise[row]) / math.sqrt(kept))
        share = (place[row] + 1) / 2
        deviation = (0.5 * (share * math.log(beta) + (1 - share) * math.log(small))).exp()
        wanted = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean(clean[row]), math.sqrt(small)),
            torch.distributions.Normal(predicted, deviation),
        )
        torch.testing.assert_close(found[row], wanted.mean(), rtol=1e-3, atol=1e-4)
    found.sum().backward()
    assert guess.grad is None or not guess.grad.any()
    assert place.grad is not None
    assert place.grad.any()
    with pytest.raises(ModelError, match="variance"):
        variance_loss(schedule, clean, TrainingExample(x, timesteps, noise), noise)


def test_the_first_step_has_a_finite_variance_loss() -> None:
    clean = torch.randn(2, 1, 3)
    example = TrainingExample(clean, torch.zeros(2, dtype=torch.int64), clean)
    assert variance_loss(LINEAR, clean, example, torch.zeros(2, 2, 3)).isfinite().all()


def test_samples_keep_their_number_format() -> None:
    start = torch.randn(2, 1, 2, dtype=torch.bfloat16)
    schedule = NoiseSchedule.linear(10, 0.01, 0.5)
    assert sample_ddpm(gaussian_noise(schedule), schedule, start).dtype == torch.bfloat16
    assert sample_flow(gaussian_velocity, start, steps=3).dtype == torch.bfloat16
