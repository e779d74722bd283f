"""Muon for the matrices inside a network, AdamW for everything else, as one optimizer.

Muon orthogonalises each matrix's momentum, so that all its directions are learned at one pace. On short runs it needs
far fewer tokens than AdamW (measured in `docs/log.md`); a step costs more, the less the larger the batch.
Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/; rate matched to AdamW's as in Liu et al. 2025, arXiv:2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.optim.exact_state import ExactStateOptimizer
from deepseek.optim.lean_adamw import LeanAdamW, StateBits


class MuonAdamW(ExactStateOptimizer):
    """Muon over `matrices`, fused AdamW over `others`; one learning rate serves both.

    Either may be parameters, or groups with settings of their own. `weight_decay` is for the matrices and for what of
    `others` has two dimensions or more, groups apart. The groups are those of the two optimizers, in this order, and
    may be changed as with any optimizer. With `state_bits` 8 AdamW's states take a byte each (`lean_adamw.py`); Muon's
    one stays float32. A scalar tensor in the attribute `grad_scale` divides the gradients, as in torch's fused AdamW.
    Raises ConfigError where there is nothing for one of the two.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor] | list[dict[str, Any]],
        others: Iterable[Tensor] | list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        state_bits: StateBits = 32,
    ) -> None:
        inner: list[Any] = list(matrices)
        outer: list[Any] = list(others)
        if not inner or not outer:
            found = "no linear layer inside the model" if not inner else "nothing but linear layers"
            raise ConfigError("Muon and AdamW can't share this model", found=found, fix="optimizer: adamw")
        groups = outer if isinstance(outer[0], dict) else decay_groups(outer, weight_decay)
        self.muon = torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw: torch.optim.AdamW | LeanAdamW
        if state_bits == 32:
            self.adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        else:
            self.adamw = LeanAdamW(groups, lr=lr, betas=betas, state_bits=state_bits)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            gradients = [p.grad for group in self.muon.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(gradients, scale)
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.grad_scale = scale  # type: ignore[union-attr]
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let the two work on this object's groups and state, so that there is one of each."""
        inside = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:inside], self.param_groups[inside:]
        self.muon.state = self.adamw.state = self.state


def decay_groups(params: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: what has two dimensions or more decays, vectors (biases, norms) do not."""
    params = list(params)
    if not weight_decay:
        return [{"params": params, "weight_decay": 0.0}]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the linear layers inside `model`: neither embeddings, nor `lm_head`, nor tied to them."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Linear):
        outside.add(id(head.weight))
    inside = (module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.requires_grad)
    unique = {id(module.weight): module for module in inside if id(module.weight) not in outside}
    return [module.get_parameter("weight") for module in unique.values()]
