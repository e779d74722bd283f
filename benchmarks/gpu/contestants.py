"""Who trains in `gpu_train`: ours in bf16 and fp8, HF Trainer, and nanoGPT's raw loop, on the workload of `gpt/`.

All begin with the weights in the workload's folder and see the same tokens; each returns its losses. Not here: clocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpt import ours as gpt_ours
from benchmarks.gpt import peers
from benchmarks.gpt.workload import Workload
from benchmarks.peer_optimizer import fused_adamw


def device_type() -> str:
    """Return "cuda" where there is a GPU; toy runs in tests take the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def ours(workload: Workload) -> list[float]:
    """Our Trainer in bf16."""
    return _ours(workload, "bf16")


def ours_fp8(workload: Workload) -> list[float]:
    """Our Trainer with float8 linear layers."""
    return _ours(workload, "fp8")


def _ours(workload: Workload, precision: str) -> list[float]:
    from deepseek import Trainer

    trainer = Trainer(
        model=gpt_ours.our_model(workload),
        train_dataset=workload.batches(),
        batch_size=workload.batch_size,
        learning_rate=workload.learning_rate,
        precision=precision,
        **gpt_ours.trainer_settings(workload),
    )
    return [float(loss) for loss in trainer.train(max_steps=workload.steps).losses]


def raw_loop(workload: Workload) -> list[float]:
    """nanoGPT's loop: bf16 autocast, TF32 elsewhere, `torch.compile`, PyTorch's flash attention, fused AdamW."""
    device = device_type()
    torch.set_float32_matmul_precision("high")
    model = peers.reference_model(workload).to(device)
    optimizer = fused_adamw(model, workload)
    step: Any = torch.compile(model) if workload.compile else model
    losses: list[Tensor] = []
    pinned = [_pinned(batch, device) for batch in workload.batches()]
    for batch in pinned:
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16):
            loss = step(moved["input_ids"], moved["labels"])[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), workload.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return peers.floats(losses)


def hf_trainer(workload: Workload) -> list[float]:
    """HF Trainer with bf16, TF32, `torch_compile` and fused AdamW."""
    from transformers import default_data_collator

    rows = [
        {"input_ids": inputs, "labels": labels, "shift_labels": labels}
        for batch in workload.batches()
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    on_gpu = device_type() == "cuda"
    _, steps = peers.hf_train(
        workload,
        rows,
        default_data_collator,
        max_steps=workload.steps,
        per_device_train_batch_size=workload.batch_size,
        train_sampling_strategy="sequential",
        bf16=True,
        torch_compile=workload.compile,
        optim="adamw_torch_fused",
        use_cpu=not on_gpu,
        **({"tf32": True} if on_gpu else {}),
    )
    return [step.loss for step in steps]


def _pinned(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.pin_memory() if device == "cuda" else value for name, value in batch.items()}
