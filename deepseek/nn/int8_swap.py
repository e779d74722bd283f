"""The structure of a quantized model as plain values, and a model rebuilt from them.

`int8_specs` reads which layers of a model are int8 and how; `swap_linears` gives a freshly built float model the same
structure, ready for `load_state_dict`. Not here: the choice of layers and ranges (`deepseek.quantization`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from deepseek.errors import ModelError, did_you_mean
from deepseek.nn.int8_conv import Int8Conv2d
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear, check_mode

Int8Spec = dict[str, str | bool]
"""`kind` (linear, embedding, conv2d), `mode`, `symmetric`, and `tied_to`, the layer whose weight it shares."""

Int8Layer = Int8Linear | Int8Embedding | Int8Conv2d

_KEYS = frozenset({"kind", "mode", "symmetric", "tied_to"})


def int8_specs(model: nn.Module) -> dict[str, Int8Spec]:
    """Return the specs of all int8 layers of `model` by module name; empty for a float model."""
    specs: dict[str, Int8Spec] = {}
    first_owner: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Int8Embedding):
            specs[name] = {"kind": "embedding"}
        elif isinstance(module, Int8Linear | Int8Conv2d):
            kind = "linear" if isinstance(module, Int8Linear) else "conv2d"
            specs[name] = {"kind": kind, "mode": module.mode, "symmetric": module.symmetric}
        else:
            continue
        owner = first_owner.setdefault(id(module.weight), name)
        if owner != name:
            specs[name]["tied_to"] = owner
    return specs


def swap_linears(model: nn.Module, specs: Mapping[str, Mapping[str, str | bool]]) -> None:
    """Replace the layers named in `specs` by empty int8 layers of their shapes, in place; the rest is frozen.

    Frozen, because an int8 model is for inference: a gradient anywhere would keep the integer kernels unused.
    Raises ModelError for a name the model lacks, a layer of another kind, or a spec that says something unknown.
    """
    swapped: dict[int, Int8Layer] = {}
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
    """Let `layer` use the int8 weight and scales of `owner`. Raises ModelError where they can't be shared."""
    kinds = Int8Linear | Int8Embedding | Int8Conv2d
    if not isinstance(layer, kinds) or not isinstance(owner, kinds) or layer.weight.shape != owner.weight.shape:
        raise ModelError(f"layer '{name}' can't share that weight", wanted="two int8 layers of one shape")
    layer.weight, layer.scale = owner.weight, owner.scale


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


def _empty(name: str, old: nn.Module, spec: Mapping[str, str | bool]) -> Int8Layer:
    kind, mode, symmetric = spec.get("kind"), check_mode(str(spec.get("mode", "dynamic"))), spec.get("symmetric", True)
    unknown = sorted(set(spec) - _KEYS)
    if unknown or not isinstance(symmetric, bool):
        raise ModelError(f"the int8 spec of layer '{name}' is wrong", found=dict(spec), wanted=f"keys {sorted(_KEYS)}")
    if kind == "linear" and isinstance(old, nn.Linear):
        bias = old.bias is not None
        layer = Int8Linear(old.in_features, old.out_features, bias, mode, symmetric, old.weight.device)
        return layer.train(old.training)
    if kind == "embedding" and isinstance(old, nn.Embedding):
        embedding = Int8Embedding(old.num_embeddings, old.embedding_dim, old.weight.device)
        return embedding.train(old.training)
    if kind == "conv2d" and isinstance(old, nn.Conv2d):
        return Int8Conv2d(old, mode, symmetric).train(old.training)
    raise ModelError(
        f"layer '{name}' can't become int8 '{kind}'", found=type(old).__name__, wanted="the kind of its spec"
    )
