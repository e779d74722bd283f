"""Gradient clipping, held against torch's own, the papers' formulas, and step after clip."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError
from deepseek.optim.clipped_step import ClippedStep
from deepseek.optim.clipping import AdaptiveClip, Clipper, NormClip, QuantileClip, last_layer, make_clipper
from deepseek.optim.lean_adamw import LeanAdamW
from deepseek.optim.muon import MuonAdamW


def parameters(seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    for shape in [(5, 7), (7,), (3, 2, 3, 3), ()]:
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator) * scale
        made.append(parameter)
    made.append(nn.Parameter(torch.randn(4)))  # one without a gradient
    return made


def gradients(held: list[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in held if p.grad is not None])


@pytest.mark.parametrize("limit", [0.3, 1e6, math.inf])
def test_clipping_by_norm_is_bitwise_torchs(limit: float) -> None:
    ours, theirs = parameters(), parameters()
    norm = NormClip(limit)(ours)
    wanted = nn.utils.clip_grad_norm_(theirs, limit)
    assert norm.dim() == 0 and torch.equal(norm, wanted)
    assert torch.equal(gradients(ours), gradients(theirs))
    with pytest.raises(ConfigError, match="above 0"):
        NormClip(0.0)


def test_without_gradients_there_is_nothing_to_clip() -> None:
    for clipper in (NormClip(), QuantileClip(warmup=1), AdaptiveClip()):
        assert float(clipper([nn.Parameter(torch.ones(2))])) == 0


def test_adaptive_clipping_is_the_papers_formula_row_by_row() -> None:
    held = parameters(scale=3.0)
    with torch.no_grad():
        held[0][1] = 0.0  # a row of zeros counts as epsilon
    before = [p.grad.clone() if p.grad is not None else None for p in held]
    total = gradients(held).norm()
    assert float(AdaptiveClip(factor=0.1, epsilon=1e-3, skip=[held[1]])(held)) == pytest.approx(float(total))
    for parameter, gradient in zip(held, before, strict=True):
        if gradient is None or parameter.grad is None:
            continue
        units = [()] if parameter.dim() < 2 else [(row,) for row in range(parameter.shape[0])]
        for unit in units:
            allowed = 0.1 * max(float(parameter.detach()[unit].norm()), 1e-3)
            found = float(gradient[unit].norm())
            share = 1.0 if parameter is held[1] else min(1.0, allowed / found)
            torch.testing.assert_close(parameter.grad[unit], gradient[unit] * share)


def test_the_last_layer_is_left_alone_unless_an_embedding_shares_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert {id(p) for p in last_layer(model)} == {id(p) for p in model[2].parameters()}
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tied[1].weight = tied[0].weight
    assert last_layer(tied) == [] == last_layer(nn.BatchNorm1d(3))
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    make_clipper("adaptive", model)(list(model.parameters()))
    assert all(bool((p.grad == 100).all()) for p in model[2].parameters() if p.grad is not None)
    assert float(model[0].weight.grad.norm()) < 1


def test_the_limit_is_the_quantile_of_the_norms_before() -> None:
    clipper, history = QuantileClip(quantile=0.75, window=5, warmup=3), list[float]()
    for step in range(20):
        held = parameters(step, scale=1.0 + 50.0 * (step % 6 == 5))
        before = gradients(held)
        norm = float(clipper(held))
        assert norm == pytest.approx(float(before.norm()))
        recent = torch.tensor(history[-5:])
        limit = float(torch.quantile(recent, 0.75)) if step >= 3 else math.inf
        assert float(gradients(held).norm()) == pytest.approx(min(norm, limit), rel=1e-5)
        history.append(norm)


def test_a_norm_that_is_not_finite_never_enters_the_window() -> None:
    clipper = QuantileClip(window=4, warmup=1)
    for step, bad in enumerate([math.nan, None, None, math.inf, None, None, math.nan, None]):
        held = parameters(step)
        if bad is not None:
            held[1].grad[2] = bad  # type: ignore[index]
        assert math.isfinite(float(clipper(held))) == (bad is None)
        assert not clipper.norms[: int(clipper.seen)].isnan().any() and clipper.norms.isfinite().sum() <= 4
    assert int(clipper.seen) == 5


def test_a_window_goes_on_from_its_saved_state() -> None:
    whole, first = QuantileClip(window=6, warmup=2), QuantileClip(window=6, warmup=2)
    runs: list[list[Tensor]] = [[], []]
    for step in range(12):
        if step == 7:
            saved = copy.deepcopy(first.state_dict())
            first = QuantileClip(window=6, warmup=2)
            first.load_state_dict(saved)
        for run, clipper in zip(runs, (whole, first), strict=True):
            held = parameters(step, scale=1.0 + step % 4)
            clipper(held)
            run.append(gradients(held))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    with pytest.raises(CheckpointError, match="another number"):
        QuantileClip(window=7).load_state_dict(whole.state_dict())


def test_what_a_config_may_say() -> None:
    assert isinstance(make_clipper(None), NormClip) and make_clipper(None).max_norm == math.inf  # type: ignore[attr-defined]
    assert make_clipper(2).max_norm == 2.0  # type: ignore[attr-defined]
    quantile = make_clipper({"kind": "quantile", "quantile": 0.5, "window": 20})
    assert isinstance(quantile, QuantileClip) and (quantile.quantile, quantile.window) == (0.5, 20)
    assert isinstance(make_clipper("adaptive"), AdaptiveClip) and isinstance(quantile, Clipper)
    assert make_clipper(quantile) is quantile
    for value, message in [
        ({"kind": "quantle"}, "did you mean 'quantile'"),
        ({"kind": "norm", "max_nrm": 1.0}, "did you mean 'max_norm'"),
        ({"kind": "quantile", "quantile": 1.5}, "at most 1"),
        ({"kind": "quantile", "warmup": 300}, "warmup 300"),
        ({"kind": "adaptive", "factor": -1.0}, "above 0"),
        (object(), "no way to clip"),
        (True, "no way to clip"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make_clipper(value)  # type: ignore[arg-type]


def training_pair(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))
    held = list(model.parameters())
    made: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD(held, lr=0.1),
        "adamw": torch.optim.AdamW(held, lr=0.01, fused=True),
        "lean": LeanAdamW(held, lr=0.01, state_bits=32),
        "muon": MuonAdamW([held[2]], held[:2] + held[3:], lr=0.01),
    }
    return model, made[kind]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lean", "muon"])
@pytest.mark.parametrize("clip", [0.05, 100.0, "quantile", "adaptive"])
def test_the_joined_step_is_clipping_then_stepping(kind: str, clip: float | str) -> None:
    (ours, our_optimizer), (theirs, their_optimizer) = training_pair(kind), training_pair(kind)
    step, clipper = ClippedStep(our_optimizer, make_clipper(clip)), make_clipper(clip)
    close = {"rtol": 2e-3, "atol": 2e-3} if kind == "muon" else {"rtol": 1e-5, "atol": 1e-6}  # Muon works in bfloat16
    for seed in range(14):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) * (5 if seed == 12 else 1)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().mean().backward()
        norm = step(list(ours.parameters()))
        torch.testing.assert_close(norm, clipper(list(theirs.parameters())), **close)
        their_optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **close)
        if clip == 100.0:
            assert torch.equal(a, b)
    assert not hasattr(our_optimizer, "grad_scale") and not hasattr(our_optimizer, "found_inf")


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lean", "muon"])
@pytest.mark.parametrize("poison", ["gradient", "loss"])
def test_a_joined_step_that_is_not_finite_changes_nothing(kind: str, poison: str) -> None:
    model, optimizer = training_pair(kind)
    step = ClippedStep(optimizer, NormClip(1.0))
    for bad in (False, True):
        model.zero_grad()
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        if bad and poison == "gradient":
            model[0].weight.grad[0, 0] = math.inf  # type: ignore[index,union-attr]
        step(list(model.parameters()), loss.detach() * (math.nan if bad and poison == "loss" else 1.0))
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert same == bad
    assert str(optimizer.state_dict()["state"]) == str(state["state"])
