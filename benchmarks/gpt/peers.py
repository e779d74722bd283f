"""The peers of `train_gpt` at full batches: raw loop, Lightning, and HF Trainer as it comes and at its best settings.

Each trains the given workload and returns its losses; times are taken by `StepClock`.
Not here: ours (`benchmarks.gpt.ours`) and the padded documents (`benchmarks.gpt.documents`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.gpt.reference import ReferenceGPT
from benchmarks.gpt.workload import Batch, Workload
from benchmarks.peer_optimizer import fused_adamw

_HF_NAMES = {
    "blocks.": "h.",
    "token.": "wte.",
    "position.": "wpe.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "qkv.": "attn.c_attn.",
    "out.": "attn.c_proj.",
    "up.": "mlp.c_fc.",
    "down.": "mlp.c_proj.",
}


class HfStep(NamedTuple):
    """What one step of HF Trainer saw."""

    loss: float
    targets: int


def raw_loop(workload: Workload) -> list[float]:
    """nanoGPT's loop: bf16 autocast, `torch.compile` over model and loss, PyTorch's attention, fused AdamW."""
    model = reference_model(workload)
    optimizer = fused_adamw(model, workload)
    step = torch.compile(model) if workload.compile else model
    losses: list[Tensor] = []
    for batch in workload.batches():
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(batch["input_ids"], batch["labels"])[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), workload.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return floats(losses)


def lightning(workload: Workload) -> list[float]:
    """Lightning's Trainer in its barebones mode (no logger, bar or checkpoint), bf16-mixed, compiled model."""
    import lightning as pl

    model = reference_model(workload)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.losses: list[Tensor] = []
            self.step = torch.compile(model) if workload.compile else model

        def training_step(self, batch: Batch, index: int) -> Tensor:
            loss: Tensor = self.step(batch["input_ids"], batch["labels"])[1]
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return fused_adamw(self.model, workload)

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            # Lightning refuses `gradient_clip_val` with a fused optimizer, which is the faster of the two.
            nn.utils.clip_grad_norm_(self.model.parameters(), workload.max_norm)

    module = Module()
    loader: DataLoader[Batch] = DataLoader(workload.batches(), batch_size=None)  # type: ignore[arg-type]
    trainer = pl.Trainer(accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=workload.steps, barebones=True)
    trainer.fit(module, loader)
    return floats(module.losses)


def hf_as_it_comes(workload: Workload) -> list[float]:
    """HF Trainer with its defaults (fp32, eager) apart from batch, optimizer numbers, schedule and logging."""
    return _hf_batches(workload)


def hf_tuned(workload: Workload) -> list[float]:
    """HF Trainer with bf16, `torch_compile` and fused AdamW."""
    return _hf_batches(workload, bf16=True, torch_compile=workload.compile, optim="adamw_torch_fused")


def hf_model(workload: Workload) -> nn.Module:
    """Return GPT2LMHeadModel of the workload's sizes, PyTorch's attention, with the workload's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings: dict[str, Any] = {
        "vocab_size": workload.vocab_size,
        "n_positions": workload.length,
        "n_embd": workload.width,
        "n_layer": workload.layers,
        "n_head": workload.heads,
        "activation_function": "gelu_pytorch_tanh",  # the same function as GPT-2's own "gelu_new", in one kernel
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": workload.eos_id,
        "eos_token_id": workload.eos_id,
        "attn_implementation": "sdpa",
    }
    model = GPT2LMHeadModel(GPT2Config(**settings))
    state = {_hf_name(name): _hf_value(name, value) for name, value in workload.weights().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"weights do not fit GPT2LMHeadModel: missing {missing}, unexpected {unexpected}")
    return model


def hf_train(
    workload: Workload, dataset: Sequence[dict[str, Any]], collator: Callable[..., Any], **settings: Any
) -> tuple[nn.Module, list[HfStep]]:
    """Run HF Trainer over `dataset`; returns the trained model and what each step saw.

    `settings` go to TrainingArguments over the settings that all contestants share.
    """
    from transformers import Trainer, TrainingArguments

    seen: list[tuple[Tensor, Tensor]] = []

    class Recorder(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
            found: Any = super().compute_loss(model, inputs, *args, **kwargs)
            shifted = inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][:, 1:]
            targets = (shifted != -100).sum()
            # HF divides by all labels, also by each document's first token, which nothing predicts: undone here.
            divisor = kwargs.get("num_items_in_batch")
            mean = found.detach() if divisor is None else found.detach() * divisor / targets
            seen.append((mean, targets))
            return found

    shared = {
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
        "remove_unused_columns": False,
        "use_cpu": True,
    }
    model = hf_model(workload)
    with tempfile.TemporaryDirectory(prefix="bench-hf-") as folder:
        arguments = TrainingArguments(output_dir=folder, **{**shared, **settings})
        Recorder(model=model, args=arguments, train_dataset=dataset, data_collator=collator).train()
    return model, [HfStep(float(loss), int(targets)) for loss, targets in seen]


def reference_model(workload: Workload) -> ReferenceGPT:
    """Return the reference model with the workload's initial weights."""
    model = ReferenceGPT(workload)
    model.load_state_dict(workload.weights())
    return model


def floats(losses: Iterable[Tensor]) -> list[float]:
    """Return the losses as Python numbers, once training is over."""
    return [float(loss) for loss in losses]


def _hf_batches(workload: Workload, **settings: Any) -> list[float]:
    from transformers import default_data_collator

    rows = [
        {"input_ids": inputs, "labels": labels, "shift_labels": labels}  # shifted already: the loss takes all targets
        for batch in workload.batches()
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    _, steps = hf_train(
        workload,
        rows,
        default_data_collator,
        max_steps=workload.steps,
        per_device_train_batch_size=workload.batch_size,
        train_sampling_strategy="sequential",
        **settings,
    )
    return [step.loss for step in steps]


def _hf_name(name: str) -> str:
    """Return the name in GPT2LMHeadModel of a weight of the reference model."""
    for ours, theirs in _HF_NAMES.items():
        name = name.replace(ours, theirs)
    return "transformer." + (name.replace("norm.", "ln_f.") if name.startswith("norm.") else name)


def _hf_value(name: str, value: Tensor) -> Tensor:
    """Return the weight as GPT-2's Conv1D keeps it: (inputs, outputs)."""
    is_linear = name.endswith((".qkv.weight", ".out.weight", ".up.weight", ".down.weight"))
    return value.T.contiguous() if is_linear else value
