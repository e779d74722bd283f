"""A prepared model and its int8 form side by side, layer by layer, each layer on the same inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepseek.nn.fake_quant.layers import prepared_layers


def assert_same_layers(prepared: nn.Module, converted: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Every int8 layer answers its inputs as the training form does, norm included, but for the order of additions.

    The int8 layers are given the inputs that the training forms had: else one value between two levels that falls to
    the other side moves more of them in the next layer.
    """
    seen = _run(prepared.eval(), inputs)
    assert seen and all(seen.values())
    _run(converted, inputs, seen)
    assert not any(seen.values()), "the int8 model calls a layer less often"


def _run(model: nn.Module, inputs: dict[str, Tensor], replay: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the model; return (input, output) of each call of each layer, or compare with those of another run."""
    layers = {name: getattr(layer, "norm", None) or name for name, layer in prepared_layers(model).items()}
    seen: dict[str, Any] = {name: [] for name in layers}
    handles = []
    for name in replay or layers:

        def before(module: nn.Module, args: Any, name: str = name) -> Any:
            if replay is None:
                seen[name].append([args[0].clone()])
                return None
            return (replay[name][0][0], *args[1:])

        def after(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            if replay is None:
                seen[name][-1].append(output.clone())
                return
            wanted = replay[name].pop(0)[1]
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()), msg=name)

        last = layers[name] if replay is None else name
        handles.append(model.get_submodule(name).register_forward_pre_hook(before))
        handles.append(model.get_submodule(last).register_forward_hook(after))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen
