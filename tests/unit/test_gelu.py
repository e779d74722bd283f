"""The compiled form of GELU against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deepseek.nn import gelu as module


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 4e-6), (torch.bfloat16, 8e-3)]
)
def test_sigmoid_form_equals_the_tanh_form_with_its_gradient(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4])]).to(dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = module._gelu_by_sigmoid(mine), F.gelu(theirs, approximate="tanh")
    assert y.dtype == dtype
    torch.testing.assert_close(y, wanted, rtol=tolerance, atol=tolerance)
    y.sum().backward()  # type: ignore[no-untyped-call]
    wanted.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=tolerance, atol=tolerance)


def test_eager_code_uses_torch_s_kernel() -> None:
    x = torch.randn(64)
    assert torch.equal(module.gelu(x), F.gelu(x, approximate="tanh"))
