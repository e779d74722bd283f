"""Golden samples: inputs and the answers a model gave when it was saved, so that every copy can be checked.

Stored are numbers at fixed places of every output; another machine or number format may move them by rounding, so a
tolerance that grows with their spread is allowed. Inputs too large for a small file are not stored: the template's
`example_inputs` make them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.errors import BundleError

Golden = dict[str, Any]
_KEPT = 64  # numbers of each output
_STORED = 1 << 14  # numbers of an input


def make_golden(model: nn.Module) -> Golden | None:
    """Answer the model's `example_inputs` (2 samples); None for a model that has none."""
    examples = getattr(model, "example_inputs", None)
    if examples is None:
        return None
    inputs: dict[str, Tensor] = examples(2)
    answers = []
    for output in _answers(model, inputs):
        places = torch.linspace(0, output.numel() - 1, min(_KEPT, output.numel()), dtype=torch.float64).long()
        spread = float(output.std()) if output.numel() > 1 else 0.0
        answers.append(
            {"places": places.tolist(), "values": output[places].tolist(), "tolerance": 0.02 + 0.05 * spread}
        )
    small = all(tensor.numel() <= _STORED for tensor in inputs.values())
    stored = {name: {"dtype": _name(tensor.dtype), "values": tensor.tolist()} for name, tensor in inputs.items()}
    return {"inputs": stored if small else None, "answers": answers}


def check_golden(model: nn.Module, golden: Golden, name: str) -> None:
    """Answer the stored inputs again. Raises BundleError when a number is further off than its tolerance."""
    try:
        outputs = _answers(model, _inputs(model, golden["inputs"]))
        off = [
            (float((output[answer["places"]] - torch.tensor(answer["values"])).abs().max()), float(answer["tolerance"]))
            for output, answer in zip(outputs, golden["answers"], strict=True)
        ]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise BundleError(f"the golden samples of {name} are damaged", found=error) from error
    for found, tolerance in off:
        if not found <= tolerance:
            raise BundleError(
                f"{name} answers its golden samples differently than when it was saved",
                found=f"numbers off by {found:.4g}",
                wanted=f"at most {tolerance:.4g}",
                fix="the weights are damaged or were changed; copy or save the bundle again",
            )


def _inputs(model: nn.Module, stored: dict[str, Any] | None) -> dict[str, Tensor]:
    if stored is None:
        examples: Any = model.example_inputs
        made: dict[str, Tensor] = examples(2)
        return made
    device = next(iter(model.state_dict().values())).device
    return {
        name: torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"]), device=device)
        for name, entry in stored.items()
    }


def _answers(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return every floating-point output, flat, float32 on the CPU, with the model in eval mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = tree_leaves(model(**inputs))
    finally:
        model.train(was_training)
    return [out.flatten().float().cpu() for out in outputs if isinstance(out, Tensor) and out.is_floating_point()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
