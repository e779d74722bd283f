"""2:4 sparsity: two of every four neighbouring weights are zero, which NVIDIA's matrix units skip.

Making the zeros works everywhere (`sparsify_2_4`); the compressed form that computes with half of the work needs CUDA
with compute capability 8.0 (`compress_2_4`). Training fills the zeros again: sparsify after it, and measure.
Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deepseek.compress.pruning.parts import modules_to_skip
from deepseek.errors import ModelError

CAPABILITY = (8, 0)
"""The lowest CUDA compute capability with sparse matrix units."""
_MULTIPLE = 64
"""Both sides of a weight must be multiples of this for every sparse kernel and format."""


def mask_2_4(weight: Tensor) -> Tensor:
    """Return a boolean mask of `weight` (out, in), True at the two largest magnitudes of each four along `in`.

    Of equal magnitudes the first ones stay. Raises ModelError where `in` is no multiple of 4.
    """
    if weight.ndim != 2 or weight.shape[1] % 4 or not weight.is_floating_point():
        raise ModelError(
            "2:4 sparsity needs a matrix of fours",
            found=f"{tuple(weight.shape)} of {weight.dtype}",
            wanted="floats (out, in), in a multiple of 4",
        )
    fours = weight.detach().abs().reshape(weight.shape[0], -1, 4)
    kept = fours.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter(-1, kept, True).view(weight.shape)


def sparsify_2_4(model: nn.Module, skip: Sequence[str] = ()) -> list[str]:
    """Set two of every four weights of the linear layers to zero, in place; returns the layers' names.

    Layers whose sides are no multiples of 64 stay dense, as no kernel takes them. Raises ModelError where none is left.
    """
    names = []
    for name, layer in _fitting(model, skip):
        with torch.no_grad():
            layer.weight.mul_(mask_2_4(layer.weight))
        names.append(name)
    if not names:
        raise ModelError("no linear layer can be made 2:4 sparse", wanted=f"both sides multiples of {_MULTIPLE}")
    return names


def compress_2_4(model: nn.Module, skip: Sequence[str] = ()) -> list[str]:
    """Give the linear layers that are 2:4 sparse their compressed form, in place, for inference; returns their names.

    Raises ModelError without CUDA of compute capability 8.0, for weights in float32 (half the bits of a product are
    lost there: use bf16 or fp16), and where no layer is sparse.
    """
    layers = list(_fitting(model, skip))
    device = layers[0][1].weight.device if layers else torch.device("cpu")
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < CAPABILITY:
        raise ModelError(
            "2:4 sparse weights need NVIDIA's sparse matrix units",
            found=f"{device.type}" + (f" of capability {capability}" if capability else ""),
            wanted=f"cuda of capability {CAPABILITY} or above",
            fix="model.to('cuda', torch.bfloat16) on such a machine; elsewhere prune channels instead",
        )
    names = []
    for name, layer in layers:
        if layer.weight.dtype not in (torch.float16, torch.bfloat16):
            raise ModelError(f"'{name}' can't be compressed", found=layer.weight.dtype, wanted="bfloat16 or float16")
        if bool((layer.weight.view(-1, 4).count_nonzero(dim=1) <= 2).all()):
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(sparse, requires_grad=False)
            names.append(name)
    if not names:
        raise ModelError("no layer is 2:4 sparse", fix="call sparsify_2_4 first")
    return names


def _fitting(model: nn.Module, skip: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    left = modules_to_skip(model, skip)
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and name not in left and not any(side % _MULTIPLE for side in layer.weight.shape):
            yield name, layer
