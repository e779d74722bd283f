"""The blocks of the Conformer, each against its formula written as loops, and what each is good for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.conformer_attention import FrameContext, RelativeSelfAttention, relative_positions
from deepseek.nn.conformer_conv import ConformerConv
from deepseek.nn.conv_subsampling import ConvSubsampling, subsampled_length
from deepseek.nn.dynamic_conv import DynamicConv, DynamicConvAttention
from deepseek.nn.gradient_reset_gate import GradientResetGate, gated_scan
from deepseek.nn.streaming_block import HalfFeedForward


def noisy(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


# --- relative self-attention


def sinusoid(distance: int, dim: int) -> Tensor:
    rates = [10000 ** (-2 * i / dim) for i in range(dim // 2)]
    return torch.tensor([math.sin(distance * r) for r in rates] + [math.cos(distance * r) for r in rates])


@pytest.mark.parametrize("time", [1, 2, 5])
@pytest.mark.parametrize("past", [0, 3])
def test_relative_attention_is_the_sum_over_pairs(time: int, past: int) -> None:
    dim, heads = 8, 2
    attention, x = noisy(RelativeSelfAttention(dim, heads, dropout=0.0)), torch.randn(1, past + time, dim)
    mask = torch.rand(time, past + time) < 0.7
    mask[torch.arange(time), past + torch.arange(time)] = True
    context = FrameContext(relative_positions(time, past + time, dim, x), mask)
    _, key, value = attention._heads(x[:, :past])
    found, _ = attention.stream(x[:, past:], context, (key, value))
    if not past:
        torch.testing.assert_close(attention(x, context), found)

    query, key, value = (part.view(-1, heads, dim // heads) for part in attention.qkv(x[0]).chunk(3, dim=-1))
    u, v = attention.content_bias[:, 0], attention.position_bias[:, 0]
    rows = []
    for i in range(past, past + time):
        row = []
        for head in range(heads):
            scores = torch.full((past + time,), -math.inf)
            for j in range(past + time):
                if mask[i - past, j]:
                    position = attention.position(sinusoid(i - j, dim)).view(heads, -1)[head]
                    by_content = (query[i, head] + u[head]) @ key[j, head]
                    scores[j] = (by_content + (query[i, head] + v[head]) @ position) / math.sqrt(dim // heads)
            row.append(scores.softmax(0) @ value[:, head])
        rows.append(attention.out(torch.cat(row)))
    torch.testing.assert_close(found[0], torch.stack(rows), atol=1e-5, rtol=1e-5)


# --- convolution module and subsampling


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 4, 5])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_convolution_module_is_its_formula(causal: bool, kernel: int, norm: str) -> None:
    dim, time = 4, 9
    module, x = noisy(ConformerConv(dim, kernel, causal=causal, dropout=0.0, norm=norm)), torch.randn(2, time, dim)
    hidden = F.layer_norm(x, (dim,), module.norm.weight, module.norm.bias)
    left, right = (hidden @ module.expand.weight.T + module.expand.bias).chunk(2, dim=-1)
    gated = left * torch.sigmoid(right)
    back = kernel - 1 if causal else (kernel - 1) // 2
    convolved = torch.zeros(2, time, dim)
    for t in range(time):
        for tap in range(kernel):
            source = t - back + tap
            if 0 <= source < time:
                convolved[:, t] += module.depthwise.weight[:, 0, tap] * gated[:, source]
    inner = module.inner_norm
    if norm == "layer":
        normed = F.layer_norm(convolved, (dim,), inner.weight, inner.bias)
    else:
        normed = convolved / math.sqrt(1 + inner.eps) * inner.weight + inner.bias
    wanted = (normed * torch.sigmoid(normed)) @ module.contract.weight.T + module.contract.bias
    torch.testing.assert_close(module(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_causal_convolution_looks_back_kernel_minus_one_frames_and_the_other_both_ways() -> None:
    x = torch.randn(1, 20, 4)
    for causal, wanted in ((True, range(10, 14)), (False, range(8, 12))):
        module = noisy(ConformerConv(4, 4, causal=causal, dropout=0.0))
        changed = x.clone()
        changed[:, 10] += torch.randn(4)  # norms ignore a shift of all channels alike
        moved = (module(changed) - module(x)).abs().sum(-1)[0] > 1e-6
        assert moved.nonzero().flatten().tolist() == list(wanted)


@pytest.mark.parametrize("frames", range(7, 20))
def test_an_output_frame_of_the_subsampling_reads_seven_frames(frames: int) -> None:
    module, x = noisy(ConvSubsampling(9, 4)), torch.randn(1, frames, 9)
    before = module(x)
    assert (
        before.shape[1] == subsampled_length(frames) and int(subsampled_length(torch.tensor(frames))) == before.shape[1]
    )
    for t in range(before.shape[1]):
        torch.testing.assert_close(module(x[:, 4 * t : 4 * t + 7])[:, 0], before[:, t])


# --- dynamic convolution attention


@pytest.mark.parametrize("causal", [False, True])
def test_dynamic_convolution_is_its_formula(causal: bool) -> None:
    dim, heads, kernel, time = 6, 3, 4, 7
    module, x = noisy(DynamicConv(dim, heads, kernel, causal=causal, dropout=0.0)), torch.randn(1, time, dim)
    left, right = module.expand(x[0]).chunk(2, dim=-1)
    frames = left * right.sigmoid()
    taps = (frames @ module.kernel.weight.T).view(time, heads, kernel).softmax(-1)
    back = kernel - 1 if causal else (kernel - 1) // 2
    mixed = torch.zeros(time, dim)
    for t in range(time):
        for channel in range(dim):
            for tap in range(kernel):
                source = t - back + tap
                if 0 <= source < time:
                    mixed[t, channel] += taps[t, channel // (dim // heads), tap] * frames[source, channel]
    torch.testing.assert_close(module(x)[0], module.out(mixed), atol=1e-5, rtol=1e-5)


def test_the_share_mixes_attention_and_convolution_channel_by_channel() -> None:
    dim = 8
    attention = RelativeSelfAttention(dim, 2, dropout=0.0)
    module = DynamicConvAttention(attention, DynamicConv(dim, 2, 3, causal=False, dropout=0.0))
    noisy(module)
    x = torch.randn(2, 5, dim)
    context = FrameContext(relative_positions(5, 5, dim, x))
    far, near = attention(x, context), module.convolution(x)
    with torch.no_grad():
        module.share.copy_(torch.tensor([-50.0] * 4 + [50.0] * 3 + [0.0]))
    found = module(x, context)
    torch.testing.assert_close(found[..., :4], far[..., :4])
    torch.testing.assert_close(found[..., 4:7], near[..., 4:7])
    torch.testing.assert_close(found[..., 7], (far + near)[..., 7] / 2)


def test_ablation_kernels_that_frames_choose_solve_what_fixed_ones_cannot() -> None:
    """Each frame says how far back the value is that it wants: one or three frames."""

    def trained(dynamic: bool) -> float:
        torch.manual_seed(0)
        module = DynamicConv(16, 2, 4, causal=True, dropout=0.0)
        head = nn.Linear(16, 1)
        if not dynamic:  # all frames have one and the same kernel
            nn.init.zeros_(module.kernel.weight)
            module.kernel.weight.requires_grad_(False)
        first = nn.Linear(2, 16)
        parameters = [p for part in (module, head, first) for p in part.parameters() if p.requires_grad]
        optimizer, loss = torch.optim.Adam(parameters, lr=0.02), torch.zeros(())
        for _ in range(150):
            value, far = torch.randn(16, 20), torch.randint(2, (16, 20))
            wanted = torch.where(far[:, 3:] == 1, value[:, :-3], value[:, 2:-1])
            y = head(module(first(torch.stack([value, far * 2.0 - 1], dim=-1))))[..., 0]
            loss = (y[:, 3:] - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert trained(dynamic=True) < 0.5 * trained(dynamic=False)


# --- gradient reset gate


def test_the_scan_is_the_recurrence() -> None:
    for time in (1, 2, 7, 16):
        keep, new, state = torch.rand(2, time, 3), torch.randn(2, time, 3), torch.randn(2, 3)
        found = gated_scan(keep, new, state)
        for t in range(time):
            state = keep[:, t] * state + new[:, t]
            torch.testing.assert_close(found[:, t], state)


def gate_by_first_channel(dim: int) -> GradientResetGate:
    """Return a gate that the first channel opens (at 0) and closes (at 1)."""
    module = GradientResetGate(dim)
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate.weight[:, 0] = -10
        module.gate.bias.fill_(2.9)
    return module


def test_a_closed_gate_stops_the_past_and_its_gradient_exactly() -> None:
    module, x = gate_by_first_channel(4), torch.randn(1, 10, 4)
    x[..., 0] = 0
    x[:, 6, 0] = 1  # closed here
    x.requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y[:, 8].sum(), x)
    seen = gradient.abs().sum(-1)[0]
    assert not seen[:6].any() and bool((seen[6:9] > 0).all()) and not seen[9:].any()
    changed = x.detach().clone()
    changed[:, :6] += torch.randn(6, 4)
    torch.testing.assert_close(module(changed)[:, 6:], y[:, 6:].detach(), atol=0, rtol=0)
    x.detach()[:, 6, 0] = 0  # and open again
    (gradient,) = torch.autograd.grad(module(x)[:, 8].sum(), x)
    assert bool((gradient.abs().sum(-1)[0, :9] > 0).all())


def test_in_a_gru_the_gradient_goes_round_the_closed_reset_gate() -> None:
    """Why the gate is not a GRU's: there the update gate carries the past on."""
    cell = nn.GRUCell(3, 3)
    with torch.no_grad():
        cell.bias_ih[:3] = -100  # the reset gate is closed
    past = torch.randn(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(cell(torch.randn(1, 3), past).sum(), past)
    assert bool((gradient.abs() > 0.1).all())


def test_memories_start_between_two_and_a_hundred_frames() -> None:
    module = GradientResetGate(32)
    module.init_gate()
    keep = F.hardsigmoid(module.gate.bias)
    assert keep.min().item() == pytest.approx(0.5, abs=0.01) and keep.max().item() == pytest.approx(0.99, abs=0.01)


def test_ablation_the_gate_forgets_what_a_fixed_memory_cannot() -> None:
    """The first value since the last marker is wanted; what came before the marker is noise."""

    def trained(gated: bool) -> float:
        torch.manual_seed(0)
        module, head = GradientResetGate(8), nn.Linear(8, 1)
        module.init_gate()
        if not gated:  # each channel keeps one share of its past, whatever comes
            nn.init.zeros_(module.gate.weight)
            module.gate.weight.requires_grad_(False)
        parameters = [p for part in (module, head) for p in part.parameters() if p.requires_grad]
        optimizer, losses = torch.optim.Adam(parameters, lr=0.03), []
        for _ in range(200):
            marker = (torch.rand(16, 24) < 0.15).float()
            marker[:, 0] = 1
            values = torch.randn(16, 24)
            x = F.pad(torch.stack([marker, values * marker, values * (1 - marker)], dim=-1), (0, 5))
            index = torch.where(marker == 1, torch.arange(24), 0).cummax(dim=1).values
            loss = (head(module(x))[..., 0] - values.gather(1, index)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses[-10:]) / 10

    assert trained(gated=True) < 0.3 * trained(gated=False)


def test_half_a_feed_forward_is_half_a_feed_forward() -> None:
    module, x = noisy(HalfFeedForward(4, 8, dropout=0.0)), torch.randn(2, 3, 4)
    hidden = module.up(module.norm(x))
    torch.testing.assert_close(module(x), module.down(hidden * hidden.sigmoid()) / 2)
