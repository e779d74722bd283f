"""Output layer and loss in one: the numbers of doing them apart, and a tenth of the memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.linear_cross_entropy import linear_cross_entropy_sum
from deepseek.nn.losses import cross_entropy_sum
from deepseek.train.memory.trace import StepTrace

SETTINGS = [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)]


def tensors(items: int = 37, d_model: int = 12, classes: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*size, generator=generator) for size in ((items, d_model), (classes, d_model), (classes,)))
    labels = torch.randint(classes, (items,), generator=generator)
    labels[::5] = -100
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), labels


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, torch.tensor(0.25))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize(("smoothing", "z_loss"), SETTINGS)
def test_loss_and_gradients_are_those_of_the_parts(smoothing: float, z_loss: float, rows: int) -> None:
    x, w, b, labels = tensors()
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    wanted = cross_entropy_sum(F.linear(x, w, b), labels, **options)
    found = linear_cross_entropy_sum(x, w, labels, b, chunk_bytes=4 * 50 * rows, **options)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients(found, x, w, b), gradients(wanted, x, w, b), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        alone = linear_cross_entropy_sum(x, w, labels, b, chunk_bytes=4 * 50 * rows, **options)
    torch.testing.assert_close(alone, wanted.detach())


def test_under_autocast_the_products_are_in_bfloat16_and_the_sums_in_float32() -> None:
    x, w, _, labels = tensors(64, 32, 200)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = cross_entropy_sum(F.linear(x, w), labels)
        found = linear_cross_entropy_sum(x, w, labels, chunk_bytes=4 * 200 * 16)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    for one, other in zip(gradients(found, x, w), gradients(wanted, x, w), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 1e-2


def test_only_what_is_trained_has_a_gradient() -> None:
    x, w, _, labels = tensors()
    linear_cross_entropy_sum(x.detach(), w, labels).backward()
    assert w.grad is not None and x.grad is None
    linear_cross_entropy_sum(x, w.detach(), labels).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradients(cross_entropy_sum(F.linear(x, w), labels), x)[0] * 4)


def test_it_can_be_differentiated_once() -> None:
    x, w, _, labels = tensors()
    loss = linear_cross_entropy_sum(x, w, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(ModelError, match="already"):
        loss.backward()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, w, _, labels = tensors()
    for wrong in ((x[:, :5], w, labels), (x, w, labels[1:]), (x[None], w, labels)):
        with pytest.raises(ModelError, match="don't fit together"):
            linear_cross_entropy_sum(*wrong)


def head_bytes(fused: bool) -> int:
    """The most bytes alive in the output layer and its loss, V=50,257 and N=4,096, but for what is handed on."""
    trace = StepTrace(torch.device("cpu"))
    x, w = (trace.batch(torch.empty(size, device="meta")).requires_grad_() for size in ((4096, 768), (50257, 768)))
    labels = torch.zeros(4096, dtype=torch.int64)
    start = len(trace.events)
    with trace, torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy_sum(x, w, labels) if fused else cross_entropy_sum(F.linear(x, w), labels)
        loss.backward()
    now = peak = 0
    for event in trace.events[start:]:
        now += event.size
        peak = max(peak, now)
    handed_on = x.grad.nbytes + w.grad.nbytes
    return peak - handed_on


def test_the_loss_head_takes_a_tenth_of_the_memory() -> None:
    fused, plain = head_bytes(True), head_bytes(False)
    print(fused >> 20, plain >> 20)
    assert fused <= 0.1 * plain
