"""How a language model's weights are held while it is served: one form for all big ones, each stored once.

On a CPU every linear layer is swapped for one that reads its weight at the speed of memory (`deepseek.nn.row_linear`),
and blocks of GPT and Llama for ones in two calls (`deepseek.nn.row_blocks`), experts for ones in a call each
(`deepseek.nn.row_experts`); small tensors become fp32. Models with weights of another kind (convolutions, say) are left
to torch, and all of them where there is no compiler.
Rounding is to the nearest, without calibration: `deepseek.quantization` does better for weights of few bits, and what
it made is taken as it is. Not here: the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from deepseek.nn import row_products
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.latent_attention import LatentAttention
from deepseek.nn.moe import Experts
from deepseek.nn.relative_attention import RelativeAttention
from deepseek.nn.router import Router
from deepseek.nn.row_blocks import row_block
from deepseek.nn.row_experts import RowExperts, RowLatentUp, RowRouter, row_gated
from deepseek.nn.row_linear import RowEmbedding, RowLinear
from deepseek.nn.row_weight import GROUP, RowForm, RowWeight

WeightForm = Literal["auto", "fp32", "bf16", "int8", "int4"]


def prepare_weights(model: nn.Module, form: WeightForm = "auto") -> nn.Module:
    """Change `model` in place so that it decodes fast with its weights in `form`; return it.

    "auto" loses nothing: bf16 for weights that are bf16 numbers, fp32 for others. "int4" keeps what embeddings share
    with output layers in int8, and layers whose inputs 32 does not divide; an embedding of its own is bf16 then. Layers
    in int8 or 4 bits keep their numbers. Logits are fp32, and gradients are none. A model that was prepared stays as it
    is. On other devices than the CPU, in models of other layers and without a compiler, fp32 and bf16 change the number
    format, int8 and int4 the linear layers.
    """
    model.eval()
    if any(isinstance(module, RowLinear) for module in model.modules()):
        return model
    device = next(iter(model.state_dict().values())).device
    if device.type != "cpu" or not _only_known_layers(model) or row_products.library() is None:
        return _left_to_torch(model, form)
    swap = _Swap(model, _lossless(model) if form == "auto" else form)
    _replace(model, swap.layer)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.float32)
    _replace(model, row_block)
    _replace(model, row_gated)
    return model


def _replace(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `change` returns in the place of each module, unless that is None."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            changed = change(child)
            if changed is not None:
                setattr(parent, name, changed)


def _only_known_layers(model: nn.Module) -> bool:
    """Return whether all tensors belong to layers that may be swapped, and to norms."""
    known = nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm | Int8Linear | Int8Embedding | Int4Linear
    known |= Experts | Router | RelativeAttention
    own = ((m, [*m.parameters(recurse=False), *m.buffers(recurse=False)]) for m in model.modules())
    held = ((module, any(tensor.is_floating_point() for tensor in tensors)) for module, tensors in own)
    return all(isinstance(module, known) for module, floats in held if floats)


def _lossless(model: nn.Module) -> RowForm:
    """Return bf16 if every big float weight is a bf16 number, else fp32."""
    big = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    big += [weight for m in model.modules() if isinstance(m, Experts) for weight in m.parameters()]
    return "bf16" if all(_is_bf16(weight.detach()) for weight in big) else "fp32"


def _is_bf16(weight: Tensor) -> bool:
    if weight.dtype == torch.float32:
        return not bool((weight.contiguous().view(torch.int32) & 0xFFFF).any())
    return weight.dtype == torch.bfloat16


class _Swap:
    """Makes the layers for one model: a weight that two layers share is rounded once, and shared again."""

    def __init__(self, model: nn.Module, form: RowForm) -> None:
        self._form = form
        self._done: dict[int, RowWeight] = {}
        self._tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self._outputs = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
        self._latent = {id(m.kv_up): m for m in model.modules() if isinstance(m, LatentAttention)}

    def layer(self, layer: nn.Module) -> nn.Module | None:
        """Return what comes in this layer's place, None to leave it."""
        if type(layer) is Experts:
            return RowExperts(layer, self._form)
        if type(layer) is Router:
            return RowRouter(layer)
        latent = self._latent.get(id(layer))
        if type(layer) is nn.Linear and latent is not None:
            return RowLatentUp(layer.weight, latent.num_heads, latent.config.plain_dim, self._form)
        if type(layer) is nn.Linear:
            few = self._form == "int4" and (layer.in_features % GROUP or id(layer.weight) in self._tables)
            weight = self._once(layer.weight, "int8" if few else self._form)
            return RowLinear(weight._replace(bias=_floats(layer.bias)))
        if type(layer) is nn.Embedding:
            form: RowForm = "fp32" if self._form == "fp32" else "bf16"
            if self._form in ("int8", "int4") and id(layer.weight) in self._outputs:
                form = "int8"
            return RowEmbedding(self._once(layer.weight, form))
        if type(layer) is Int8Linear and layer.mode != "static" and layer.group_size is None:
            return RowLinear(RowWeight.packed("int8", layer.weight, layer.scale, None, layer.bias))
        if type(layer) is Int8Embedding:
            return RowEmbedding(RowWeight.packed("int8", layer.weight, layer.scale))
        weight4 = _four_bits(layer) if type(layer) is Int4Linear else None
        return None if weight4 is None else RowLinear(weight4)

    def _once(self, weight: Tensor, form: RowForm) -> RowWeight:
        if id(weight) not in self._done:
            self._done[id(weight)] = RowWeight.rounded(weight, form)
        return self._done[id(weight)]


def _four_bits(layer: Int4Linear) -> RowWeight | None:
    """Return the layer's own levels with a scale for each 32 inputs; None where the kernel can't tell it."""
    width, size = layer.in_features, layer.group_size
    own = width if size is None else min(size, width)
    scale = layer.scale.to(torch.bfloat16)
    if layer.multiplied or width % GROUP or own % GROUP or width % own or not torch.equal(scale.float(), layer.scale):
        return None
    zero = None if layer.zero_point is None else layer.zero_point.repeat_interleave(own // GROUP, dim=1)
    scales = scale.repeat_interleave(own // GROUP, dim=1)
    return RowWeight.packed("int4", layer.weight, scales, zero, layer.bias)


def _floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(torch.float32).contiguous()


def _left_to_torch(model: nn.Module, form: WeightForm) -> nn.Module:
    if form == "auto":
        return model
    if form in ("fp32", "bf16"):
        return model.to(torch.float32 if form == "fp32" else torch.bfloat16)
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def fewer_bits(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or id(layer.weight) in tied:
            return None
        whole = form == "int8" or layer.in_features % GROUP
        return Int8Linear.from_linear(layer, "weight_only") if whole else Int4Linear.from_linear(layer, GROUP)

    _replace(model, fewer_bits)
    return model
