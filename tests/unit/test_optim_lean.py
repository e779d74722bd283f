"""AdamW in less memory: codes of 8 bits, stochastic rounding, offloading; held against torch's AdamW."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.checkpoint.training_state import optimizer_state, random_state, restore_optimizer, restore_random_state
from deepseek.errors import ConfigError
from deepseek.optim.block_codes import BLOCK, decode, dynamic_table, encode
from deepseek.optim.lean_adamw import LeanAdamW, state_bytes_per_number
from deepseek.optim.offload import OffloadedAdamW
from deepseek.optim.rounding import RoundingNoise, round_stochastically


def test_the_table_is_the_papers_dynamic_one() -> None:
    for signed, smallest in ((True, 0.55e-6), (False, 0.325e-6)):
        table = dynamic_table(signed, torch.device("cpu"))
        assert len(table) == 256 == len(set(table.tolist())) and bool((table.diff() > 0).all())
        positive = table[table > 0]
        assert float(positive[0]) == pytest.approx(smallest) and float(table[-1]) == 1.0
        assert 0.0 in table.tolist()
        # a decade has half the values of the next larger one
        decades = [int(((positive >= 10.0**-k * 0.1) & (positive < 10.0**-k)).sum()) for k in range(7)]
        assert decades == [2 ** ((6 if signed else 7) - k) for k in range(7)]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numbers", [BLOCK, 3 * BLOCK + 77, 40])
def test_codes_are_the_nearest_values_of_each_block(signed: bool, numbers: int) -> None:
    values = torch.randn(numbers, generator=torch.Generator().manual_seed(1)).pow(5) * 3e-4
    values = values if signed else values.abs()
    codes, scales = torch.empty(numbers, dtype=torch.uint8), torch.empty(math.ceil(numbers / BLOCK))
    encode(values.clone(), codes, scales, signed=signed)
    found = decode(codes, scales, signed=signed)
    table = dynamic_table(signed, torch.device("cpu"))
    for index, block in enumerate(values.split(BLOCK)):
        largest = block.abs().max()
        assert scales[index] == largest
        share = block / largest
        nearest = (share[:, None] - table).abs().min(1).values
        error = (found.split(BLOCK)[index] / largest - share).abs()
        slack = share.abs() / 128 + (0.0 if signed else 4e-7)  # a positive number is never 0 in the unsigned table
        assert bool((error <= nearest + slack).all())
        assert bool((found.split(BLOCK)[index][block > 0] > 0).all()) or signed


def test_zeros_and_single_numbers_survive() -> None:
    for signed in (True, False):
        codes, scales = torch.empty(BLOCK, dtype=torch.uint8), torch.empty(1)
        encode(torch.zeros(BLOCK), codes, scales, signed=signed)
        assert not decode(codes, scales, signed=signed).any()
        one = torch.zeros(BLOCK)
        one[5] = 1e-30
        encode(one.clone(), codes, scales, signed=signed)
        assert torch.equal(decode(codes, scales, signed=signed), one)


def test_rounding_by_chance_keeps_the_mean_and_goes_to_a_neighbour() -> None:
    torch.manual_seed(0)
    value = torch.full((40_000,), 1.0 + 0.3 / 128)  # 30% of the way from 1 to the next bfloat16
    out = torch.empty_like(value, dtype=torch.bfloat16)
    round_stochastically(value, RoundingNoise().draw(len(value), value.device), out)
    assert set(out.tolist()) == {1.0, 1.0078125}
    assert float(out.float().mean()) == pytest.approx(float(value[0]), abs=5 * 0.0078125 / math.sqrt(40_000))
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.5, 3.0])
    out = torch.empty(6, dtype=torch.bfloat16)
    round_stochastically(special, RoundingNoise().draw(6, special.device), out)
    assert torch.equal(out.float().nan_to_num(9.0), special.nan_to_num(9.0))


def test_noise_is_the_runs_own_and_uniform() -> None:
    torch.manual_seed(5)
    first = RoundingNoise().draw(1 << 16, torch.device("cpu")).clone()
    torch.manual_seed(5)
    assert torch.equal(RoundingNoise().draw(1 << 16, torch.device("cpu")), first)
    low = first.bitwise_and(0xFFFF).double() / 65536
    assert float(low.mean()) == pytest.approx(0.5, abs=0.01) and float(low.var()) == pytest.approx(1 / 12, abs=0.005)


def train(optimizer: torch.optim.Optimizer, weights: list[Tensor], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = (torch.randn(weight.shape, generator=generator) + weight.detach().float()).to(weight.dtype)
        optimizer.step()


def make_weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(140, 1000), (33,), (64, 64)]  # more than a piece, too small for codes, whole blocks
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def test_with_32_bits_it_is_torchs_adamw() -> None:
    ours, theirs = make_weights(), make_weights()
    train(LeanAdamW(ours, state_bits=32, **SETTINGS), ours, 5)
    train(torch.optim.AdamW(theirs, **SETTINGS), theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bits", "dtype", "limit"), [(8, torch.float32, 0.06), (16, torch.bfloat16, 0.1)])
def test_lean_states_learn_like_exact_ones(bits: Any, dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    ours, theirs = make_weights(dtype), make_weights()
    before = [weight.detach().clone() for weight in theirs]
    train(LeanAdamW(ours, state_bits=bits, **SETTINGS), ours, 30)
    train(torch.optim.AdamW(theirs, **SETTINGS), theirs, 30)
    for a, b, start in zip(ours, theirs, before, strict=True):
        way = (b.detach() - start).norm()
        assert float((a.detach().float() - b.detach()).norm() / way) < limit


def test_a_gradient_that_is_small_beside_its_block_makes_no_giant_step() -> None:
    weight = nn.Parameter(torch.zeros(8192))
    optimizer = LeanAdamW([weight], lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
    for _ in range(20):
        weight.grad = torch.full((8192,), 1e-9)
        weight.grad[::BLOCK] = 1e-2  # 0 would be the nearest code of the others' squares
        optimizer.step()
    assert float(weight.detach().abs().max()) < 25


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.float32), (8, torch.bfloat16), (16, torch.bfloat16)])
def test_a_resumed_run_is_bitwise_the_same(bits: Any, dtype: torch.dtype) -> None:
    def start() -> tuple[nn.Module, LeanAdamW]:
        model = nn.ParameterList(make_weights(dtype))
        return model, LeanAdamW(model.parameters(), state_bits=bits, **SETTINGS)

    torch.manual_seed(1)
    model, optimizer = start()
    train(optimizer, list(model.parameters()), 3)
    saved = copy.deepcopy((model.state_dict(), optimizer_state(optimizer, model), random_state()))
    train(optimizer, list(model.parameters()), 3, start=3)
    other, restored = start()
    other.load_state_dict(saved[0])
    restore_optimizer(restored, other, saved[1])
    restore_random_state(saved[2])
    train(restored, list(other.parameters()), 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    states = [opt.state_dict()["state"] for opt in (optimizer, restored)]
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)
        assert all(torch.as_tensor(a[name]).dtype is torch.as_tensor(b[name]).dtype for name in a)


def test_tiny_updates_vanish_with_nearest_rounding_and_not_by_chance() -> None:
    torch.manual_seed(2)
    steps, lr = 400, 1e-4  # AdamW moves by lr a step; the last bit of 1.0 in bfloat16 is 1/128
    chance = nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    nearest = nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    made = [
        (LeanAdamW([chance], lr=lr, weight_decay=0.0, state_bits=16), chance),
        (torch.optim.AdamW([nearest], lr=lr, weight_decay=0.0), nearest),
    ]
    for optimizer, weight in made:
        for _ in range(steps):
            weight.grad = torch.full_like(weight, 0.01)
            optimizer.step()
    assert bool((nearest == 1).all())
    assert float(chance.detach().float().mean()) == pytest.approx(1 - steps * lr, abs=2e-3)


def test_memory_is_what_the_function_says() -> None:
    for bits, dtype in ((8, torch.float32), (16, torch.bfloat16), (32, torch.float32)):
        weights = make_weights(dtype)
        optimizer = LeanAdamW(weights, state_bits=bits)  # type: ignore[arg-type]
        train(optimizer, weights, 1)
        for weight in weights:
            tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
            found = sum(value.numel() * value.element_size() for value in tensors)
            assert found == round(weight.numel() * state_bytes_per_number(bits, weight.numel()))  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    weight = nn.Parameter(torch.zeros(3))
    for settings in ({"state_bits": 4}, {"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}):
        with pytest.raises(ConfigError):
            LeanAdamW([weight], **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float16"):
        LeanAdamW([nn.Parameter(torch.zeros(3, dtype=torch.float16))])


def test_weights_that_are_not_contiguous_and_closures() -> None:
    held = nn.Parameter(torch.randn(40, 60, generator=torch.Generator().manual_seed(4)).t())
    plain = nn.Parameter(held.detach().clone().contiguous())
    for weight in (held, plain):
        optimizer = LeanAdamW([weight], state_bits=32, **SETTINGS)

        def closure(weight: Tensor = weight, optimizer: LeanAdamW = optimizer) -> float:
            optimizer.zero_grad()
            loss = weight.sin().sum()
            loss.backward()
            return float(loss.detach())

        assert math.isfinite(optimizer.step(closure) or 0.0)
    assert torch.equal(held, plain)


def test_offloaded_adamw_is_bitwise_torchs_on_the_cpu() -> None:
    ours, theirs = make_weights(), make_weights()
    groups = [{"params": ours[:1]}, {"params": ours[1:], "weight_decay": 0.0, "lr": 0.5}]
    optimizer = OffloadedAdamW(groups, **SETTINGS)
    reference = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0, "lr": 0.5}], fused=True, **SETTINGS
    )
    for _ in range(2):
        train(optimizer, ours, 2)
        train(reference, theirs, 2)
        for made in (optimizer, reference):
            made.param_groups[1]["lr"] = 0.1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_states_resume_with_their_float32_masters(dtype: torch.dtype) -> None:
    model, other = nn.ParameterList(make_weights(dtype)), nn.ParameterList(make_weights(dtype))
    first, second = (OffloadedAdamW(m.parameters(), **SETTINGS) for m in (model, other))
    train(first, list(model.parameters()), 3)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    restore_optimizer(second, other, copy.deepcopy(optimizer_state(first, model)))
    for optimizer, held in ((first, model), (second, other)):
        train(optimizer, list(held.parameters()), 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    if dtype is torch.bfloat16:  # the masters are the truth: the weights are theirs, rounded
        masters = [state["master"] for state in first.state_dict()["state"].values()]
        assert all(m.dtype is torch.float32 for m in masters)
        assert all(torch.equal(p, m.bfloat16()) for p, m in zip(model.parameters(), masters, strict=True))
