"""The kinds of quantized layers, the structure of a quantized model as plain values, and a model rebuilt from them.

`int8_specs` reads which layers of a model are quantized and how; `swap_linears` gives a freshly built float model the
same structure, ready for `load_state_dict`. Not here: the choice of layers and ranges (`deepseek.quantization`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from deepseek.errors import ModelError, did_you_mean
from deepseek.nn.binary_layers import BinaryConv2d, BinaryLinear
from deepseek.nn.int4_layers import Int4Conv2d, Int4Embedding
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int8_conv import INT8_CONVS, Int8Conv
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.ternary_layers import TernaryConv2d, TernaryLinear

Int8Spec = dict[str, str | bool | int | None]
"""`kind`, the settings of that kind, and `tied_to`, the layer whose weight it shares."""

Int8Layer = Int8Linear | Int8Embedding | Int8Conv


class LayerKind(NamedTuple):
    """A kind of quantized layer: what it takes the place of and what has to be known to build it."""

    layer: type[nn.Module]
    replaces: type[nn.Module]
    build: Callable[..., nn.Module]
    """Called with the float layer and the settings by name; returns the empty layer."""
    settings: Mapping[str, tuple[type, ...]] = {}
    """Attribute of the layer, which is a keyword of `build` too -> the types of its values."""
    weight: tuple[str, ...] = ("weight", "scale")
    """The buffers that two layers of one table share."""


def _int8_linear(
    linear: nn.Linear, mode: Any = "dynamic", symmetric: bool = True, group_size: int | None = None
) -> Int8Linear:
    bias, device = linear.bias is not None, linear.weight.device
    return Int8Linear(linear.in_features, linear.out_features, bias, mode, symmetric, device, group_size)


def _int8_embedding(table: nn.Embedding) -> Int8Embedding:
    return Int8Embedding(table.num_embeddings, table.embedding_dim, table.weight.device)


_INT8 = {"mode": (str,), "symmetric": (bool,)}
_INT4 = {"group_size": (int, type(None)), "symmetric": (bool,)}
_INT4_WEIGHT = ("weight", "scale", "zero_point")

KINDS: dict[str, LayerKind] = {
    "linear": LayerKind(Int8Linear, nn.Linear, _int8_linear, {**_INT8, "group_size": (int, type(None))}),
    "embedding": LayerKind(Int8Embedding, nn.Embedding, _int8_embedding),
    **{form.kind: LayerKind(form, conv, form, _INT8) for conv, form in INT8_CONVS.items()},
    "int4_linear": LayerKind(
        Int4Linear, nn.Linear, Int4Linear.empty_like, {**_INT4, "multiplied": (bool,)}, _INT4_WEIGHT
    ),
    "int4_embedding": LayerKind(Int4Embedding, nn.Embedding, Int4Embedding, _INT4, _INT4_WEIGHT),
    "int4_conv2d": LayerKind(Int4Conv2d, nn.Conv2d, Int4Conv2d, _INT4, _INT4_WEIGHT),
    "ternary_linear": LayerKind(TernaryLinear, nn.Linear, TernaryLinear),
    "ternary_conv2d": LayerKind(TernaryConv2d, nn.Conv2d, TernaryConv2d),
    "binary_linear": LayerKind(BinaryLinear, nn.Linear, BinaryLinear, {"signed_input": (bool,)}),
    "binary_conv2d": LayerKind(BinaryConv2d, nn.Conv2d, BinaryConv2d, {"signed_input": (bool,)}),
}
"""By the name under which bundles store them. Those without a number of bits in their name are int8."""

_NAMES = {kind.layer: name for name, kind in KINDS.items()}


def int8_specs(model: nn.Module) -> dict[str, Int8Spec]:
    """Return the specs of all quantized layers of `model` by module name; empty for a float model."""
    specs: dict[str, Int8Spec] = {}
    first_owner: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = _NAMES.get(type(module))
        if kind is None:
            continue
        specs[name] = {"kind": kind, **{setting: getattr(module, setting) for setting in KINDS[kind].settings}}
        owner = first_owner.setdefault(id(module.weight), name)
        if owner != name:
            specs[name]["tied_to"] = owner
    return specs


def swap_linears(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the layers named in `specs` by empty quantized layers of their shapes, in place; the rest is frozen.

    Frozen, because a quantized model is for inference: a gradient anywhere would keep the integer kernels unused.
    Raises ModelError for a name the model lacks, a layer of another kind, or a spec that says something unknown.
    """
    swapped: dict[int, nn.Module] = {}
    for name, spec in specs.items():
        old = get_layer(model, name)
        new = swapped.get(id(old))
        if new is None:
            new = swapped[id(old)] = _empty(name, old, spec)
        set_layer(model, name, new)
    for name, spec in specs.items():
        if "tied_to" in spec:
            tie(get_layer(model, name), get_layer(model, str(spec["tied_to"])), name)
    if specs:
        model.requires_grad_(False)


def tie(layer: nn.Module, owner: nn.Module, name: str) -> None:
    """Let `layer` use the quantized weight and scales of `owner`. Raises ModelError where they can't be shared."""
    kinds = [_NAMES.get(type(module)) for module in (layer, owner)]
    buffers = [KINDS[kind].weight for kind in kinds if kind is not None]
    shapes = [_shapes(module, buffers[0]) for module in (layer, owner)] if len(buffers) == 2 else []
    if len(shapes) != 2 or buffers[0] != buffers[1] or shapes[0] != shapes[1]:
        raise ModelError(
            f"layer '{name}' can't share that weight", wanted="two quantized layers of one shape and one number of bits"
        )
    for buffer in buffers[0]:
        setattr(layer, buffer, getattr(owner, buffer))
    if getattr(layer, "input_multiplier", None) is not None:  # it belonged to the layer's own weight
        del layer.input_multiplier
        setattr(layer, "input_multiplier", None)  # noqa: B010  # a buffer set to None would miscount exported ones


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the layer at a dotted name. Raises ModelError with near names."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [known for known, _ in model.named_modules() if known]
        raise ModelError(f"the model has no layer '{name}'", fix=did_you_mean(name, known)) from None


def set_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at a dotted name, and keep torch's fused transformer kernel off a layer it can't read."""
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], layer)
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # the fused kernel takes linear1.weight itself; 0 means "not for me"


def _shapes(module: nn.Module, buffers: tuple[str, ...]) -> list[tuple[Any, ...]]:
    tensors = [getattr(module, name) for name in buffers]
    return [() if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors]


def _empty(name: str, old: nn.Module, spec: Mapping[str, Any]) -> nn.Module:
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        known = did_you_mean(str(spec.get("kind")), KINDS)
        raise ModelError(f"unknown kind of quantized layer for '{name}'", found=repr(spec.get("kind")), fix=known)
    settings = {key: value for key, value in spec.items() if key not in {"kind", "tied_to"}}
    if any(type(value) not in kind.settings.get(key, ()) for key, value in settings.items()):
        wanted = f"the keys {sorted({'kind', 'tied_to', *kind.settings})}"
        raise ModelError(f"the spec of layer '{name}' is wrong", found=dict(spec), wanted=wanted)
    if not isinstance(old, kind.replaces):
        raise ModelError(
            f"layer '{name}' can't become quantized '{spec['kind']}'",
            found=type(old).__name__,
            wanted=kind.replaces.__name__,
        )
    return kind.build(old, **settings).train(old.training)
