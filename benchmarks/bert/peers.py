"""The peers of `train_bert`: HF Trainer as it comes and at its best settings, and a raw compiled loop.

All train transformers' BertForMaskedLM; times are taken by `StepClock`. Not here: ours (`benchmarks.bert.ours`).
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bert.workload import Batch, Workload
from benchmarks.peer_optimizer import fused_adamw


def raw_loop(workload: Workload) -> list[float]:
    """bf16 autocast, `torch.compile` over model and loss, PyTorch's attention, fused AdamW."""
    model = hf_model(workload).train()
    optimizer = fused_adamw(model, workload)
    step: Any = torch.compile(model) if workload.compile else model
    torch.manual_seed(0)
    losses: list[Tensor] = []
    for batch in workload.batches():
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), workload.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def hf_as_it_comes(workload: Workload) -> list[float]:
    """HF Trainer in float32, eager: its defaults apart from batch, optimizer numbers, schedule and logging."""
    return _hf_train(workload)


def hf_tuned(workload: Workload) -> list[float]:
    """HF Trainer with bf16, `torch_compile` and fused AdamW."""
    return _hf_train(workload, bf16=True, torch_compile=workload.compile, optim="adamw_torch_fused")


def hf_model(workload: Workload) -> nn.Module:
    """Return BertForMaskedLM with the workload's weights and PyTorch's attention."""
    from transformers import BertForMaskedLM

    model: nn.Module = BertForMaskedLM.from_pretrained(workload.weights, attn_implementation="sdpa")
    return model


def _hf_train(workload: Workload, **settings: Any) -> list[float]:
    from transformers import Trainer, TrainingArguments, default_data_collator

    seen: list[Tensor] = []

    class Recorder(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
            found: Any = super().compute_loss(model, inputs, *args, **kwargs)
            seen.append(found.detach())
            return found

    rows = [
        {name: values[row] for name, values in batch.items()}
        for batch in workload.batches()
        for row in range(workload.batch_size)
    ]
    shared = {
        "max_steps": workload.steps,
        "per_device_train_batch_size": workload.batch_size,
        "train_sampling_strategy": "sequential",
        "learning_rate": workload.learning_rate,
        "adam_beta1": workload.betas[0],
        "adam_beta2": workload.betas[1],
        "weight_decay": workload.weight_decay,
        "max_grad_norm": workload.max_norm,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory(prefix="bench-hf-") as folder:
        arguments = TrainingArguments(output_dir=folder, **{**shared, **settings})
        Recorder(
            model=hf_model(workload), args=arguments, train_dataset=rows, data_collator=default_data_collator
        ).train()
    return [float(loss) for loss in seen]
