"""Mixtures of experts: against a loop over tokens and experts, what balances them, capacity, compiled and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.nn.gated_experts import gated_experts
from deepseek.nn.moe import MoE
from deepseek.nn.moe_config import MoEConfig
from deepseek.nn.router import Router, Routing, expert_load, load_balancing_loss

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "normalised": {"normalize": True, "num_shared": 0, "scale": 1.5},
    "one expert": {"top_k": 1},
    "all experts": {"top_k": 8},
    "softmax groups": {"num_groups": 4, "top_groups": 2},
    "sigmoid groups": {"num_groups": 4, "top_groups": 2, "scoring": "sigmoid", "normalize": True, "scale": 2.5},
    "corrected": {"scoring": "sigmoid", "normalize": True, "correction_bias": True},
}


def mixture(**changes: Any) -> MoE:
    moe = MoE(12, MoEConfig(**{"num_experts": 8, "top_k": 3, "d_ff": 6, "num_shared": 1, **changes}))
    if moe.router.correction_bias is not None:
        moe.router.correction_bias.normal_()
    return moe


def token_by_token(moe: MoE, x: Tensor, skipped: frozenset[tuple[int, int]] = frozenset()) -> Tensor:
    """Compute each token's experts one after the other; (token, expert) pairs in `skipped` are left out."""
    routing, experts, out = moe.router(x), moe.experts, []
    for number, token in enumerate(x.flatten(0, 1)):
        total = moe.shared(token) if moe.shared is not None else torch.zeros_like(token)
        choices = routing.experts.flatten(0, 1)[number].tolist()
        for weight, expert in zip(routing.weights.flatten(0, 1)[number], choices, strict=True):
            if (number, expert) not in skipped:
                inner = F.silu(experts.gate[expert] @ token) * (experts.up[expert] @ token)
                total = total + weight * (experts.down[expert] @ inner)
        out.append(total)
    return torch.stack(out).view(x.shape)


def chosen_by_hand(router: Router, token: Tensor) -> dict[int, float]:
    """Return the experts of one token and their weights, rule by rule as the papers say."""
    config = router.config
    logits = (router.weight @ token).tolist()
    scores = (
        torch.tensor(logits).softmax(0).tolist()
        if config.scoring == "softmax"
        else torch.tensor(logits).sigmoid().tolist()
    )
    bias = [0.0] * len(scores) if router.correction_bias is None else router.correction_bias.tolist()
    ranked = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size, best = config.num_experts // config.num_groups, 1 if config.scoring == "softmax" else 2
    groups = [range(start, start + size) for start in range(0, config.num_experts, size)]
    groups.sort(key=lambda group: -sum(sorted((ranked[e] for e in group), reverse=True)[:best]))
    allowed = [expert for group in groups[: config.top_groups] for expert in group]
    chosen = sorted(allowed, key=lambda expert: -ranked[expert])[: config.top_k]
    total = sum(scores[expert] for expert in chosen) if config.normalize else 1.0
    return {expert: scores[expert] / total * config.scale for expert in chosen}


@pytest.mark.parametrize("kind", KINDS)
def test_the_router_follows_the_papers(kind: str) -> None:
    router = mixture(**KINDS[kind]).router
    x = torch.randn(2, 9, 12)
    routing = router(x)
    assert routing.weights.dtype == routing.scores.dtype == torch.float32
    for batch in range(2):
        for time in range(9):
            wanted = chosen_by_hand(router, x[batch, time])
            weights = routing.weights[batch, time].tolist()
            found = dict(zip(routing.experts[batch, time].tolist(), weights, strict=True))
            assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_a_loop(kind: str) -> None:
    moe = mixture(**KINDS[kind])
    x = torch.randn(2, 11, 12, requires_grad=True)
    found, statistics = moe(x)
    wanted = token_by_token(moe, x)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert int(statistics.dropped) == 0
    weights = [x, *moe.parameters()]
    seed = torch.randn_like(found)
    ours = torch.autograd.grad((found * seed).sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad((wanted * seed).sum(), weights, allow_unused=True)
    for ours_gradient, theirs_gradient in zip(ours, theirs, strict=True):
        theirs_gradient = torch.zeros_like(ours_gradient) if theirs_gradient is None else theirs_gradient
        torch.testing.assert_close(ours_gradient, theirs_gradient, atol=1e-5, rtol=1e-4)


def test_no_token_is_dropped_when_all_want_the_same_experts() -> None:
    moe = mixture(correction_bias=True)
    assert moe.router.correction_bias is not None
    moe.router.correction_bias.copy_(torch.tensor([0.0, 0, 9, 9, 0, 0, 0, 9]))
    x = torch.randn(1, 40, 12)
    found, statistics = moe(x)
    assert expert_load(statistics.routing.experts, 8).tolist() == [0, 0, 40, 40, 0, 0, 0, 40]
    torch.testing.assert_close(found, token_by_token(moe, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[3, 0, 4, 1], [0, 0, 8, 0], [8, 0, 0, 0], [0, 0, 0, 0]])
def test_gated_experts_are_a_feed_forward_layer_for_each_group(counts: list[int]) -> None:
    x = torch.randn(sum(counts), 5, dtype=torch.float64, requires_grad=True)
    gate, up = (torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    down = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor(counts).cumsum(0)
    groups = enumerate(x.split(counts))
    wanted = torch.cat([(F.silu(part @ gate[i].T) * (part @ up[i].T)) @ down[i].T for i, part in groups])
    torch.testing.assert_close(gated_experts(x, gate, up, down, ends), wanted)
    if sum(counts):
        weights = (x, gate, up, down)
        assert torch.autograd.gradcheck(lambda *values: gated_experts(*values, ends), weights)
    torch.library.opcheck(torch.ops.deepseek.gated_experts.default, (x, gate, up, down, ends))


@pytest.mark.parametrize("spread", [0.1, 100.0])
def test_16_bit_experts_padded_or_not_compute_the_same(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few or many rows of padding: the product of all experts at once equals one expert after the other."""
    moe, x = mixture(), torch.randn(2, 32, 12, requires_grad=True)
    moe.router.weight.data *= spread
    found = []
    for most in (0.0, 100.0):
        monkeypatch.setattr("deepseek.nn.moe.MOST_PADDING", most)
        with torch.autocast("cpu", torch.bfloat16):
            out, statistics = moe(x)
        assert int(statistics.dropped) == 0
        gradients = torch.autograd.grad(out.float().square().sum(), [x, *moe.experts.parameters()])
        found.append((out.detach().float(), *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(one.abs().max()))


def test_capacity_leaves_out_the_least_weights_and_counts_them() -> None:
    moe, x = mixture(capacity_factor=1.0), torch.randn(2, 16, 12)
    routing = moe.router(x)
    skipped, limit = set(), 12  # 32 tokens * 3 choices / 8 experts
    for expert in range(8):
        token, choice = (routing.experts.flatten(0, 1) == expert).nonzero(as_tuple=True)
        order = routing.weights.flatten(0, 1)[token, choice].argsort(descending=True)
        skipped |= {(int(number), expert) for number in token[order[limit:]]}
    assert 0 < len(skipped) < 32
    found, statistics = moe(x)
    assert int(statistics.dropped) == len(skipped)
    torch.testing.assert_close(found, token_by_token(moe, x, frozenset(skipped)), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())
    with torch.no_grad():
        everything, statistics = moe.eval()(x)
    assert int(statistics.dropped) == 0
    torch.testing.assert_close(everything, token_by_token(moe, x), atol=1e-5, rtol=1e-5)


def test_room_for_all_drops_none() -> None:
    x = torch.randn(2, 16, 12)
    moe = mixture(capacity_factor=8.0)
    found, statistics = moe(x)
    assert int(statistics.dropped) == 0
    torch.testing.assert_close(found, token_by_token(moe, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_compiled_whole_with_gradients(capacity_factor: float | None) -> None:
    moe, x = mixture(capacity_factor=capacity_factor), torch.randn(2, 8, 12)
    found = torch.compile(moe, fullgraph=True, backend="aot_eager")(x)
    found[0].square().sum().backward()
    compiled = [parameter.grad.clone() for parameter in moe.parameters() if parameter.grad is not None]
    moe.zero_grad()
    wanted = moe(x)
    wanted[0].square().sum().backward()
    torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1].dropped, wanted[1].dropped)
    for ours, parameter in zip(compiled, moe.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-4)


def test_exported_without_an_operator_of_ours() -> None:
    moe, x = mixture(**KINDS["sigmoid groups"]).eval(), torch.randn(2, 8, 12)
    time = torch.export.Dim("time", min=2, max=64)
    program = torch.export.export(moe, (x,), dynamic_shapes=({1: time},))
    assert "deepseek" not in str(program.graph)
    for length in (8, 21):
        x = torch.randn(2, length, 12)
        torch.testing.assert_close(program.module()(x)[0], moe(x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_by_float32(dtype: torch.dtype) -> None:
    moe, x = mixture(), torch.randn(2, 30, 12)
    wanted, _ = moe(x)
    with torch.autocast("cpu", dtype):
        found, statistics = moe(x)
    assert torch.equal(statistics.routing.experts, moe.router(x).experts)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.05)
    half = moe.to(dtype)
    assert half(x.to(dtype))[0].dtype == dtype


def test_meta_device_gives_shapes_alone() -> None:
    with torch.device("meta"):
        moe, x = mixture(), torch.randn(2, 5, 12)
    assert moe(x)[0].shape == (2, 5, 12)


def test_balance_loss_is_the_papers_sum() -> None:
    with torch.no_grad():
        routing = mixture(scoring="sigmoid").router(torch.randn(3, 10, 12))
    total = 0.0
    for scores, experts in zip(routing.scores.tolist(), routing.experts.tolist(), strict=True):
        for expert in range(8):
            share = sum(expert in choice for choice in experts) * 8 / (3 * 10)
            probability = sum(token[expert] / sum(token) for token in scores) / 10
            total += share * probability / 3
    assert float(load_balancing_loss(routing)) == pytest.approx(total, rel=1e-4)
    even = Routing(torch.ones(1, 4, 2), torch.tensor([[[0, 1], [2, 3], [0, 1], [2, 3]]]), torch.full((1, 4, 4), 0.3))
    assert float(load_balancing_loss(even)) == pytest.approx(1.0)
    crowded = Routing(torch.ones(1, 4, 1), torch.zeros(1, 4, 1, dtype=torch.int64), torch.eye(4)[[0] * 4][None])
    assert float(load_balancing_loss(crowded)) == pytest.approx(4.0)


def spread(load: Tensor) -> float:
    """Return the most loaded expert's tokens in multiples of the mean: 1 is even."""
    return float(load.max() / load.float().mean())


def test_the_correction_bias_evens_out_the_load() -> None:
    router, x = mixture(scoring="sigmoid", correction_bias=True).router, torch.randn(1, 400, 12) + 1.0
    router.correction_bias = torch.zeros(8)
    before = router(x)
    for _ in range(300):
        router.update_correction_bias(expert_load(router(x).experts, 8), rate=0.005)
    after = router(x)
    assert spread(expert_load(before.experts, 8)) > 1.5
    assert spread(expert_load(after.experts, 8)) < 1.1
    assert torch.equal(before.scores, after.scores)  # the bias chooses, it does not weigh
    torch.testing.assert_close(after.weights, after.scores.gather(-1, after.experts))


def test_the_balance_loss_evens_out_the_load() -> None:
    router, x = mixture().router, torch.randn(1, 400, 12) + 1.0
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    before = spread(expert_load(router(x).experts, 8))
    for _ in range(100):
        load_balancing_loss(router(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before > 1.5 and spread(expert_load(router(x).experts, 8)) < 1.25


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_groups": 3}, "nearest that fits: num_groups 2"),
        ({"num_groups": 4, "top_groups": 5}, "at most 4 fits"),
        ({"num_groups": 4, "top_groups": 1}, "at most top_k 2 fits"),
        ({"num_groups": 8, "top_groups": 4, "scoring": "sigmoid"}, "num_groups 4"),
        ({"top_k": 9}, "at most top_k 8 fits"),
        ({"scoring": "sigmiod"}, "sigmoid"),
    ],
)
def test_choices_that_are_impossible_name_the_nearest(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MoEConfig(**{"num_experts": 8, "top_k": 3, **changes})
