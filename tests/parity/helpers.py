"""What every parity test of a family does: their model to ours and back, with equal answers, gradients and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.models.pretrained.fill import stored_weights
from deepseek.models.pretrained.front import from_pretrained, save_pretrained
from deepseek.models.pretrained.translate import source_of, to_ours
from deepseek.registry import PRETRAINED, resolve

Outputs = Tensor | tuple[Tensor, ...]


def noisy(model: Any, scale: float = 0.05, seed: int = 0) -> Any:
    """Add noise to all weights and floating buffers of a model, in place, and put it into eval mode.

    Biases, norms and running statistics are then far enough from 0 and 1 to show a misplaced one; variances stay
    positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or (name.rpartition(".")[2] in {"inv_freq", "original_inv_freq"}):
                continue
            noise = torch.randn(tensor.shape, generator=generator) * scale
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


def logits(output: Any) -> Tensor:
    """Return what most of their models answer with."""
    found: Tensor = output.logits
    return found


def same(output: Any) -> Outputs:
    """Return a model's answer as it is."""
    found: Outputs = output
    return found


def check_family(
    theirs: Any,
    inputs: Mapping[str, Any],
    tmp_path: Path,
    pick: Callable[[Any], Outputs] = logits,
    *,
    pick_ours: Callable[[Any], Outputs] = same,
    our_inputs: Mapping[str, Tensor] | None = None,
    in_file: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    changes: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Save `theirs` (see `noisy`), read it as ours, compare; save ours, let them read it, compare. Return ours.

    `pick` and `pick_ours` take from an answer the tensor, or tuple of tensors, to compare. `our_inputs` are given where
    names differ. `in_file` turns their weights by parameter name into weights by the name in the file, where those
    differ (fused experts). `changes` go to our config. Logits agree within 1e-4, gradients within 1e-3 (both absolute,
    for values around 1, and relative), weights after the way there and back exactly.
    """
    our_inputs = dict(inputs) if our_inputs is None else our_inputs
    theirs.eval().save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs", **(changes or {}))
    wanted, found = pick(theirs(**inputs)), pick_ours(ours(**our_inputs))
    assert_near(found, wanted, 1e-4)
    _check_gradients(theirs, ours, wanted, found, in_file)
    _check_bfloat16(tmp_path / "theirs", our_inputs, pick_ours, changes or {})

    save_pretrained(ours, tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert_near(pick(again.eval()(**inputs)), tuple_of(wanted), 1e-4)
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[name], tensor), f"{name} changed on the way there and back"
    return ours


def tuple_of(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return one tensor or several as a tuple, detached."""
    return tuple(x.detach() for x in ((outputs,) if isinstance(outputs, Tensor) else outputs))


def assert_near(found: Outputs, wanted: Outputs, tolerance: float) -> None:
    """Compare answers, absolutely and relatively within the tolerance."""
    found, wanted = tuple_of(found), tuple_of(wanted)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def _check_gradients(
    theirs: Any,
    ours: nn.Module,
    wanted: Outputs,
    found: Outputs,
    in_file: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Compare the gradients of one random sum of the answers, weight by weight, under our names."""
    for outputs in (wanted, found):
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        generator = torch.Generator().manual_seed(1)
        total = [(x * torch.randn(x.shape, generator=generator)).sum() for x in outputs]
        torch.stack(total).sum().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters(remove_duplicate=False)
    }
    gradients = in_file(gradients)
    model_type = theirs.config.model_type
    family: Any = resolve(PRETRAINED, model_type, "family")
    config: Any = ours.config
    rules = family.rules(config)

    def read(name: str) -> Tensor:
        prefix = family.base_prefix
        return gradients[name] if name in gradients else gradients[name.removeprefix(prefix)]

    for names, tensor in stored_weights(ours):
        if not isinstance(tensor, nn.Parameter):
            continue
        source = next((found for name in names if (found := source_of(name, tensor.shape, rules))), None)
        assert source is not None, f"no rule for {names[0]}"
        theirs_gradient = to_ours(source, read, tensor.shape)
        ours_gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        scale = max(1.0, float(theirs_gradient.abs().max()))
        torch.testing.assert_close(
            ours_gradient / scale,
            theirs_gradient / scale,
            atol=1e-3,
            rtol=1e-3,
            msg=lambda text, name=names[0]: f"gradient of {name}: {text}",
        )


def _check_bfloat16(
    folder: Path, inputs: Mapping[str, Tensor], pick: Callable[[Any], Outputs], changes: Mapping[str, Any]
) -> None:
    """The same checkpoint read as bfloat16 runs and answers in bfloat16 or float32, without NaN."""
    model = from_pretrained(folder, dtype=torch.bfloat16, **changes)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    with torch.no_grad():
        outputs = pick(model(**{name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}))
    assert all(bool(x.isfinite().all()) for x in tuple_of(outputs))
