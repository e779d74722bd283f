"""Batch norms folded into the convolution or linear layer before them, and the bundle's word for it ("folded").

A norm in eval mode multiplies each channel and adds to it; so can the layer before. Which norm follows which layer is
found by running the model once and watching who reads each layer's output, never by names.
Not here: norms in training, which follow each batch (`deepseek.quantization.qat`).
Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.int8_swap import get_layer, set_layer
from deepseek.nn.readers import watch_readers

_LAYERS: dict[type[nn.Module], int | None] = {
    nn.Linear: 2,  # of more dimensions the norm would take another one for the channels
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}
"""Layers that a norm can be folded into, and the dimensions that their output must have."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FoldedNorm(nn.Identity):
    """What stays of a batch norm that was folded into `layer`: nothing to compute."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def extra_repr(self) -> str:
        return f"into {self.layer}"


def fold_norms(model: nn.Module, example_inputs: Any) -> list[str]:
    """Fold each batch norm into the layer whose output it alone reads, in place; return the norms' names.

    `example_inputs`: a dict of inputs by name, one tensor, or positional arguments; the model runs on them once, in
    eval mode. Layers that anything else reads, whose weight is shared, or that meet several norms are left alone.
    The folded layers get new parameters: tensors shared with other models do not change.
    """
    folded = []
    for norm_name, layer_name in norm_pairs(model, example_inputs).items():
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        _absorb(layer, norm)
        _replace(model, norm, FoldedNorm(layer_name).train(norm.training))
        folded.append(norm_name)
    return folded


def norm_pairs(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """Return the batch norms that could be folded, and the layer that would take each up."""
    layers = {id(module): name for name, module in model.named_modules() if type(module) in _LAYERS}
    norms = {id(module): name for name, module in model.named_modules() if type(module) in _NORMS}
    if not layers or not norms:
        return {}
    makers = {id(module): _LAYERS[type(module)] for module in model.modules() if id(module) in layers}
    readers, sources = watch_readers(model, example_inputs, makers, set(norms))
    shared = _shared_weights(model)
    pairs = {}
    for norm_id, found in sources.items():
        if len(found) != 1:
            continue
        (layer_id,) = found
        if isinstance(layer_id, int) and readers[layer_id] == {norm_id} and layer_id not in shared:
            norm = model.get_submodule(norms[norm_id])
            if getattr(norm, "running_mean", None) is not None:
                pairs[norms[norm_id]] = layers[layer_id]
    return pairs


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the folded norms: name -> the layer it was folded into."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module.layer for name, module in named if isinstance(module, FoldedNorm)}


def apply(model: nn.Module, spec: Mapping[str, Any]) -> None:
    """Take the norms named in `spec` out of a freshly built model and give their layers a bias, without values.

    Raises ModelError for a name the model lacks or a layer of another kind.
    """
    for norm_name, layer_name in spec.items():
        norm, layer = get_layer(model, norm_name), get_layer(model, str(layer_name))
        if type(layer) not in _LAYERS or not isinstance(norm, (*_NORMS, FoldedNorm)):
            raise ModelError(
                f"'{norm_name}' can't be folded into '{layer_name}'",
                found=f"{type(norm).__name__} and {type(layer).__name__}",
                wanted="a batch norm and the convolution or linear layer before it",
            )
        _give_bias(layer)
        set_layer(model, norm_name, FoldedNorm(str(layer_name)).train(norm.training))


@torch.no_grad()
def _absorb(layer: nn.Module, norm: Any) -> None:
    """Give the layer the norm's factor and shift, computed in fp64."""
    weight = layer.get_parameter("weight")
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    bias = getattr(layer, "bias", None)
    shift = ((0 if bias is None else bias.double()) - mean) * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    scaled = weight.double() * _by_output(layer, factor)
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)


def _by_output(layer: nn.Module, factor: Tensor) -> Tensor:
    """Shape one factor for each output channel so that it multiplies the layer's weight."""
    weight = layer.get_parameter("weight")
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return factor.reshape(-1, *(1,) * (weight.dim() - 1))
    by_group = factor.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1).flatten(0, 1)
    return by_group.reshape(*by_group.shape, *(1,) * (weight.dim() - 2))


def _give_bias(layer: Any) -> None:
    if layer.bias is None:
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        bias = torch.zeros(channels, device=layer.weight.device, dtype=layer.weight.dtype)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in names:
        set_layer(model, name, new)


def _shared_weights(model: nn.Module) -> set[int]:
    """Return the ids of modules one of whose parameters another module has too."""
    owners: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].add(id(module))
    return {owner for sharing in owners.values() if len(sharing) > 1 for owner in sharing}
