"""AdamW whose states live in main memory: a GPU holds only weights and gradients.

Main memory (pinned) holds a float32 copy of the weights, the gradients of a step and both states. In a step all
gradients are sent at once on a stream of their own; each parameter is updated by torch's fused AdamW on the CPU as soon
as its gradient is there, and sent back while the next one is updated. Weights in bfloat16 on the GPU lose nothing:
their float32 copy is the master.
Source: Ren et al. 2021, "ZeRO-Offload", arXiv:2101.06840, without its delayed update: results are those of AdamW.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from deepseek.optim.exact_state import ExactStateOptimizer


class OffloadedAdamW(ExactStateOptimizer):
    """AdamW over `params` on any device, its float32 weights and states in main memory.

    Bitwise torch's fused AdamW on the CPU. Weights that something else than `step` changes have to be announced with
    `refresh`; loading a state does so. Groups are those of any optimizer. A scalar tensor in the attribute `grad_scale`
    divides the gradients.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._held = [p for group in self.param_groups for p in group["params"]]
        self._masters = {p: _in_main_memory(p) for p in self._held}
        self._updates: dict[Tensor, torch.optim.AdamW] = {
            p: torch.optim.AdamW([master], fused=True) for p, master in self._masters.items()
        }
        gpu = next((p.device for p in self._held if p.is_cuda), None)
        self._stream = torch.cuda.Stream(gpu) if gpu is not None else None  # type: ignore[no-untyped-call]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights anew from the device, where something else than `step` changed them."""
        for parameter, master in self._masters.items():
            master.copy_(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Waits for the gradients, as any work on the CPU has to."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        scale = scale.cpu() if scale is not None else None
        arrivals = self._fetch_gradients()
        for group in self.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter in arrivals:
                    arrivals[parameter].synchronize()
                self._update(parameter, settings, scale)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the weights have to be loaded before."""
        super().load_state_dict(state_dict)
        self.refresh()
        for parameter, update in self._updates.items():
            state = self.state.get(parameter, {})
            if "master" in state:
                self._masters[parameter].detach().copy_(state["master"])
                state["master"] = self._masters[parameter].detach()
            update.state[self._masters[parameter]] = {name: value for name, value in state.items() if name != "master"}

    def state_device(self, parameter: Tensor) -> torch.device:
        """Return main memory, for every parameter."""
        return torch.device("cpu")

    def _fetch_gradients(self) -> dict[Tensor, torch.cuda.Event]:
        """Start sending every gradient to main memory; return what to wait for."""
        arrivals = {}
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with self._on_stream():
            for parameter, master in self._masters.items():
                if parameter.grad is None:
                    continue
                if master.grad is None:
                    master.grad = torch.empty_like(master, pin_memory=parameter.is_cuda)
                master.grad.copy_(parameter.grad, non_blocking=True)
                if parameter.is_cuda:
                    arrivals[parameter] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    arrivals[parameter].record(torch.cuda.current_stream(parameter.device))
        return arrivals

    def _update(self, parameter: Tensor, settings: dict[str, Any], scale: Tensor | None) -> None:
        update, master = self._updates[parameter], self._masters[parameter]
        update.param_groups[0].update(settings)
        if scale is not None:
            update.grad_scale = scale  # type: ignore[attr-defined]
        update.step()
        if scale is not None:
            del update.grad_scale  # type: ignore[attr-defined]
        with self._on_stream():
            parameter.copy_(master, non_blocking=True)
        state: dict[str, Any] = update.state[master]
        if parameter.dtype is not torch.float32:
            state = {**state, "master": master.detach()}
        self.state[parameter] = state

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _in_main_memory(parameter: Tensor) -> Tensor:
    pinned = parameter.is_cuda
    master = torch.empty(parameter.shape, dtype=torch.float32, device="cpu", pin_memory=pinned)
    return master.requires_grad_(True)
