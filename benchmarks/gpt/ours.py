"""Ours in `train_gpt`: `deepseek.Trainer` with its own defaults, on full batches and on packed documents.

Not here: any help that a user of `deepseek.Trainer` would not have. Weights come from the workload's file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.gpt.documents import Trained, cycle
from benchmarks.gpt.workload import Batch, Workload

if TYPE_CHECKING:
    from deepseek.data.loader import Loader


def train_batches(workload: Workload) -> list[float]:
    """Train on the workload's batches in order."""
    model = our_model(workload)
    return _train(workload, model, workload.batches(), workload.steps)


def train_documents(workload: Workload) -> Trained:
    """Pack the documents; attention and loss stay inside a document, as they do with padding."""
    return _train_packed(workload, isolate_documents=True)


def train_documents_joined(workload: Workload) -> Trained:
    """Pack the documents; attention runs across their borders, as nanoGPT does."""
    return _train_packed(workload, isolate_documents=False)


def our_model(workload: Workload) -> nn.Module:
    """Return `deepseek.models.gpt.GPT` of the workload's sizes with the workload's weights.

    Both models define their parameters in the order in which data passes them, so weights are matched by order;
    a differing shape is an error.
    """
    from deepseek.models.gpt import GPT, GPTConfig

    config = GPTConfig(
        vocab_size=workload.vocab_size,
        max_length=workload.length,
        num_layers=workload.layers,
        d_model=workload.width,
        num_heads=workload.heads,
    )
    model = GPT(config)
    theirs, weights = list(model.named_parameters()), list(workload.weights_in_order())
    if [weight.shape for _, weight in theirs] != [weight.shape for _, weight in weights]:
        pairs = [f"{name} {tuple(value.shape)}" for name, value in theirs]
        raise SystemExit("GPT's parameters do not match the reference's, one by one: " + ", ".join(pairs))
    with torch.no_grad():
        for (_, target), (_, source) in zip(theirs, weights, strict=True):
            target.copy_(source)
    return model


def _train(workload: Workload, model: nn.Module, data: Any, steps: int) -> list[float]:
    from deepseek import Trainer

    trainer = Trainer(
        model=model,
        train_dataset=data,
        batch_size=workload.batch_size,
        learning_rate=workload.learning_rate,
        **trainer_settings(workload),
    )
    return [float(loss) for loss in trainer.train(max_steps=steps).losses]


def trainer_settings(workload: Workload) -> dict[str, Any]:
    """Return the settings of our Trainer that make its maths the workload's and its extras those of the peers.

    `compile` is asked for, as the peers do: "auto" would find that a run this short is over before it pays.
    """
    return {
        "betas": list(workload.betas),
        "weight_decay": workload.weight_decay,
        "max_grad_norm": workload.max_norm,
        "schedule": "constant",
        "warmup_steps": 0,
        "compile": workload.compile,
        "progress": False,
        "tensorboard": False,
    }


def _train_packed(workload: Workload, *, isolate_documents: bool) -> Trained:
    loader = _packed_loader(workload, isolate_documents)
    timed = cycle(len(workload.documents()), workload.documents_per_batch)  # as many steps as the matched peer
    steps = workload.skip + timed
    targets = [useful_targets(loader.batch_at(0, index), workload.eos_id) for index in range(steps)]
    model = our_model(workload)
    losses = _train(workload, model, loader, steps)
    model.eval()

    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = model(tokens)
        return found

    return Trained(losses, targets, logits, timed)


def _packed_loader(workload: Workload, isolate_documents: bool) -> Loader:
    from deepseek.data.loader import Loader
    from deepseek.data.packing import PackedDataset
    from deepseek.data.token_cache import build_token_cache
    from deepseek.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(workload.folder / "tokenizer.json")
    cache = build_token_cache(workload.folder / "train.jsonl", tokenizer, workload.folder / "cache")
    packed = PackedDataset(cache, workload.length, isolate_documents=isolate_documents, seed=0)
    return Loader(packed, workload.batch_size, seed=0)


def useful_targets(batch: Batch, eos_id: int) -> int:
    """Return the targets in the batch that lie in the document of the token before them."""
    inside = (batch["labels"] != -100) & (batch["input_ids"] != eos_id)
    return int(inside.sum())
