"""`convert_qat`: a model trained with rounding in, its int8 form out, batch norms folded. Not here: the training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import QuantizationError
from deepseek.nn.fake_quant.layers import FORMS, FakeQuantEmbedding, FakeQuantLayer, prepared_layers
from deepseek.nn.fake_quant.norms import FreezingBatchNorm
from deepseek.nn.fold_norm import FoldedNorm
from deepseek.nn.int4_layers import Int4Conv2d, Int4Embedding
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int4_weights import MIDDLE
from deepseek.nn.int8_conv import INT8_CONVS, Int8Conv
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear, Int8Mode
from deepseek.nn.int8_swap import set_layer, tie
from deepseek.nn.packed_bits import pack


def convert_qat(model: nn.Module) -> nn.Module:
    """Return the int8 form of a model that `prepare_qat` made: a copy in eval mode, for inference; saved as any other.

    Layers that round their input become static int8 layers, others weight-only ones. Weights are the whole numbers that
    training rounded to, so the copy answers as `model.eval()` does, but for the order of additions. Those of 4 bits
    take 4 where the layer is weight-only (linear layers, tables, 2-D convolutions), else 8. Batch norms are folded
    where `prepare_qat` found that they could be.
    Raises QuantizationError, naming the layer, if the model is not prepared or a learned number is not finite.
    """
    if not prepared_layers(model):
        raise QuantizationError("the model is not prepared", wanted="what prepare_qat returned, trained or not")
    result = copy.deepcopy(model).eval().requires_grad_(False)
    made: dict[int, nn.Module] = {}
    owners: dict[int, nn.Module] = {}
    for name, layer in prepared_layers(result).items():
        if id(layer) not in made:
            made[id(layer)] = new = _integer_form(result, name, layer).train(layer.training)
            owner = owners.setdefault(id(layer.weight), new)
            if owner is not new:
                tie(new, owner, name)
        set_layer(result, name, made[id(layer)])
    for name, part in list(result.named_modules(remove_duplicate=False)):
        if isinstance(part, FreezingBatchNorm):
            set_layer(result, name, part.to_plain())
    return result


def _integer_form(model: nn.Module, name: str, layer: FakeQuantLayer) -> nn.Module:
    integers, scale = layer.weight_quantizer.integers(layer.weight)
    if not (bool(torch.isfinite(scale).all()) and bool(torch.isfinite(layer.weight).all())):
        raise QuantizationError(
            f"layer '{name}' learned numbers that are not finite", fix="train with a lower learning rate"
        )
    bias = None
    if not isinstance(layer, FakeQuantEmbedding):
        bias = None if layer.bias is None else layer.bias.detach().float().clone()
    if layer.norm is not None:
        integers, scale, bias = _folded(model.get_submodule(layer.norm), integers, scale, bias)
        set_layer(model, layer.norm, FoldedNorm(name).eval())
    shape = _shape_of(layer, bias is not None)
    if layer.weight_quantizer.packed:
        made = _packed(shape, integers, scale)
    else:
        made = _int8(layer, shape, integers, scale)
    if bias is not None:
        made.bias = bias
    return made


def _shape_of(layer: Any, bias: bool) -> Any:
    """Return a plain layer of the sizes of `layer`, without values."""
    plain: Any = next(kind for kind, form in FORMS.items() if form is type(layer))
    made: Any
    if plain is nn.Embedding:
        made = plain(layer.num_embeddings, layer.embedding_dim, device="meta")
    elif plain is nn.Linear:
        made = plain(layer.in_features, layer.out_features, bias=bias, device="meta")
    else:
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        made = plain(*sizes, groups=layer.groups, bias=bias, device="meta")
    return made.to_empty(device=layer.weight.device)


def _packed(shape: Any, integers: Tensor, scale: Tensor) -> nn.Module:
    levels, scale = (integers.flatten(1) + MIDDLE).to(torch.uint8), scale.unsqueeze(1)
    if isinstance(shape, nn.Linear):
        return Int4Linear.from_levels(shape, None, levels, scale, None)
    made = Int4Embedding(shape) if isinstance(shape, nn.Embedding) else Int4Conv2d(shape)
    made.weight, made.scale = pack(levels, 4), scale
    return made


def _int8(layer: FakeQuantLayer, shape: Any, integers: Tensor, scale: Tensor) -> nn.Module:
    if isinstance(shape, nn.Embedding):
        table = Int8Embedding(shape.num_embeddings, shape.embedding_dim, shape.weight.device)
        table.weight, table.scale = integers, scale
        return table
    rounds = layer.input_quantizer
    mode: Int8Mode = "weight_only" if rounds is None else "static"
    symmetric = rounds is None or rounds.symmetric
    made: Int8Linear | Int8Conv
    if isinstance(shape, nn.Linear):
        bias, device = shape.bias is not None, shape.weight.device
        made = Int8Linear(shape.in_features, shape.out_features, bias, mode, symmetric, device)
    else:
        made = INT8_CONVS[type(shape)](shape, mode, symmetric)
    made.set_weight(integers, scale)
    if rounds is not None:
        made.set_input_range(*rounds.range())
    return made


def _folded(norm: Any, integers: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole numbers, scales and bias that give what the norm makes of the layer's output.

    A negative factor turns the sign of whole numbers, whose levels are symmetric.
    """
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = (-norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()) * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    signs = torch.where(factor < 0, -1, 1).to(torch.int8).reshape(-1, *(1,) * (integers.dim() - 1))
    return integers * signs, (scale.double() * factor.abs()).float(), shift.float()
