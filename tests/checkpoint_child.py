"""Processes that save checkpoints, for tests that kill them or let several work together: `python -m`, then a task."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepseek.checkpoint.store import CheckpointStore, load_checkpoint
from deepseek.checkpoint.training_state import optimizer_state, restore_model, restore_optimizer

LARGE = 5 << 20
"""Elements (20 MB) that are enough for a process to write them."""


def large_state(step: int) -> dict[str, Any]:
    """Return a state of 20 MB, a known function of the step."""
    return {"step": step, "model": {"a": torch.arange(LARGE) % 251 + float(step), "b": torch.full((7,), step)}}


def save_and_die(folder: Path, signal_number: int) -> None:
    """Commit step 1, begin to save step 2, and get the signal when a line comes in."""
    store = CheckpointStore(folder)
    store.save(1, large_state(1))
    store.wait()
    store.save(2, large_state(2))
    print(json.dumps({"writer": store._writer.pid}), flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal_number)
    signal.pause()


def train(model: nn.Module) -> torch.optim.Optimizer:
    """Take two steps of AdamW on batches that every process has alike."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        model(torch.randn(4, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def toy() -> nn.Sequential:
    """Return a small model, always the same; its sizes do not divide evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def tree(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what is saved."""
    return {"model": model.state_dict(), "optimizer": optimizer_state(optimizer, model)}


def ranks(folder: Path, rank: int) -> None:
    """As one of two sharded ranks: train and save `ours`; load `alone`, and save it again as `again`."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = toy()
    fully_shard(model, mesh=mesh)
    optimizer = train(model)
    for asynchronous, name in ((True, "ours"), (False, "ours_synchronous")):
        with CheckpointStore(folder / "store", asynchronous=asynchronous) as store:
            store.save(1, tree(model, optimizer), path=folder / name)
    state = load_checkpoint(folder / "alone")
    restore_model(model, state["model"])
    restore_optimizer(optimizer, model, state["optimizer"])
    with CheckpointStore(folder / "store") as store:
        store.save(1, tree(model, optimizer), path=folder / "again")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    task, place, number = sys.argv[1:]
    {"save_and_die": save_and_die, "ranks": ranks}[task](Path(place), int(number))
