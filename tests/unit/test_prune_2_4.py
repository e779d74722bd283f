"""2:4 sparsity: the mask against a loop over all fours, the layers it takes, the refusal without the hardware."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepseek.compress.pruning import compress_2_4, mask_2_4, sparsify_2_4
from deepseek.errors import ModelError


def test_the_mask_keeps_the_two_largest_of_each_four() -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weight[0, :4] = 1.0  # a tie: the first two stay
    mask = mask_2_4(weight)
    for row in range(6):
        for start in range(0, 12, 4):
            four = weight[row, start : start + 4].abs().tolist()
            kept = sorted(range(4), key=lambda place: (-four[place], place))[:2]
            assert mask[row, start : start + 4].nonzero()[:, 0].tolist() == sorted(kept)


def test_only_layers_that_kernels_take_become_sparse() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10))
    assert sparsify_2_4(model, skip=["2"]) == ["0"]
    assert model[0].weight.count_nonzero() == 64 * 128 // 2
    assert model[2].weight.count_nonzero() == 64 * 128


def test_errors_say_what_is_wanted() -> None:
    with pytest.raises(ModelError, match="matrix of fours"):
        mask_2_4(torch.randn(4, 6))
    with pytest.raises(ModelError, match="no linear layer"):
        sparsify_2_4(nn.Linear(10, 10))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_the_hardware_compressing_is_a_typed_error() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    sparsify_2_4(model)
    with pytest.raises(ModelError, match="sparse matrix units"):
        compress_2_4(model)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sparse matrix units"
)
def test_compressed_layers_answer_like_the_masked_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256)).to("cuda", torch.bfloat16).requires_grad_(False)
    sparsify_2_4(model)
    x = torch.randn(128, 128, device="cuda", dtype=torch.bfloat16)
    wanted = model(x)
    assert compress_2_4(model) == ["0"]
    torch.testing.assert_close(model(x), wanted, atol=2e-2, rtol=2e-2)
