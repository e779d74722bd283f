"""Golden samples: inputs and the answers a model gave when it was saved, so that every copy can be checked.

Stored are the five likeliest tokens after each sample and their logits; another machine or number format may move a
logit by rounding, so a tolerance that grows with their spread is allowed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import BundleError

Golden = dict[str, Any]
_KEPT = 5


def make_golden(model: nn.Module) -> Golden | None:
    """Answer the model's `example_inputs` (2 samples); None for a model that has none or gives no logits."""
    examples = getattr(model, "example_inputs", None)
    if examples is None:
        return None
    inputs: dict[str, Tensor] = examples(2)
    logits = _answer(model, inputs)
    top = logits.topk(min(_KEPT, logits.shape[-1]), dim=-1)
    return {
        "inputs": {name: tensor.tolist() for name, tensor in inputs.items()},
        "top_ids": top.indices.tolist(),
        "top_logits": top.values.tolist(),
        "tolerance": 0.02 + 0.05 * float(logits.std()),
    }


def check_golden(model: nn.Module, golden: Golden, name: str) -> None:
    """Answer the stored inputs again. Raises BundleError when a logit is further off than the tolerance."""
    device = next(iter(model.state_dict().values())).device
    try:
        inputs = {key: torch.tensor(value, device=device) for key, value in golden["inputs"].items()}
        wanted = torch.tensor(golden["top_logits"], dtype=torch.float32)
        top_ids = torch.tensor(golden["top_ids"], dtype=torch.int64)
        tolerance = float(golden["tolerance"])
        found = _answer(model, inputs).gather(-1, top_ids)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise BundleError(f"the golden samples of {name} are damaged", found=error) from error
    error_found = float((found - wanted).abs().max())
    if not error_found <= tolerance:
        raise BundleError(
            f"{name} answers its golden samples differently than when it was saved",
            found=f"logits off by {error_found:.4g}",
            wanted=f"at most {tolerance:.4g}",
            fix="the weights are damaged or were changed; copy or save the bundle again",
        )


def _answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits after the last position, float32 on the CPU, with the model in eval mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output: Tensor = model(**inputs)
    finally:
        model.train(was_training)
    return output[:, -1].float().cpu()
