"""One run of one contestant of `memory_bert`: `python -m benchmarks.children.memory_run NAME FOLDER RESULT`.

The value is the most resident memory (VmHWM of proc(5)) in training, the model included, above what the process held
after its imports and a toy run, so that neither side pays for its libraries, nor for the file it loads. The weights
come from one checkpoint in the Hugging Face layout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.children.step_clock import StepClock

ROWS, LENGTH, VOCAB, STEPS, SKIP = 8, 128, 30522, 5, 2
HEAD_ITEMS, HEAD_CLASSES, HEAD_WIDTH = 4096, 50_000, 768
LEAN: dict[str, Any] = {"precision": "bf16", "weights_dtype": "bf16", "optimizer_bits": 8}
OURS: dict[str, dict[str, Any]] = {
    "ours-defaults": {},
    "ours-lean": {**LEAN, "memory_budget": "1.3GB"},
    "ours-leanest": {**LEAN, "memory_budget": "840MB"},
}
Batch = dict[str, Tensor]


class Done(NamedTuple):
    """What training left: the losses, and what the trainer says of itself."""

    losses: list[float]
    says: str


def batches(count: int, rows: int = ROWS, length: int = LENGTH, vocab: int = VOCAB) -> list[Batch]:
    """Return masked batches: 15% of the tokens hidden behind [MASK], labels -100 elsewhere."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        ids = torch.randint(200 if vocab > 400 else 5, vocab, (rows, length), generator=generator)
        hidden = torch.rand(ids.shape, generator=generator) < 0.15
        hidden[:, 0] = True
        labels = torch.where(hidden, ids, -100)
        made.append({"input_ids": torch.where(hidden, 103 if vocab > 400 else 4, ids), "labels": labels})
    return made


def ours(folder: Path, data: list[Batch], settings: dict[str, Any]) -> Done:
    """Train with `deepseek.Trainer`; nothing is saved, so that no copy for a checkpoint is wanted."""
    from deepseek import Trainer
    from deepseek.models.bert import BERT
    from deepseek.tasks.masked_lm import MaskedLanguageModeling

    model = BERT.from_pretrained(folder, head="masked_lm")
    _forget_peak()
    trainer = Trainer(
        model=model,
        train_dataset=data,
        task=MaskedLanguageModeling(),
        learning_rate=5e-5,
        betas=[0.9, 0.999],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        compile=False,
        progress=False,
        async_checkpoints=False,
        **settings,
    )
    result = trainer.train(max_steps=len(data))
    return Done([float(loss) for loss in result.losses], result.memory_plan or "")


def hugging_face(folder: Path, data: list[Batch], settings: dict[str, Any]) -> Done:
    """Train `BertForMaskedLM` with HF Trainer and its defaults (float32, AdamW), apart from the schedule."""
    from transformers import BertForMaskedLM, Trainer, TrainingArguments

    model = BertForMaskedLM.from_pretrained(folder)
    _forget_peak()
    losses: list[float] = []

    class Recorder(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found: Any = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
            return found

    rows = [
        {name: values[row] for name, values in batch.items()} for batch in data for row in range(len(batch["labels"]))
    ]
    with tempfile.TemporaryDirectory(prefix="bench-hf-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=len(data[0]["labels"]),
            max_steps=len(data),
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            use_cpu=True,
            **settings,
        )
        Recorder(model=model, args=arguments, train_dataset=rows).train()
    return Done(losses, "")


def run(name: str, folder: Path) -> dict[str, object]:
    """Run a contestant; returns `{"value", "outputs", "details"}`."""
    if name.startswith("head-"):
        return head(name)
    train: Callable[[Path, list[Batch], dict[str, Any]], Done] = ours if name in OURS else hugging_face
    settings = OURS.get(name, {"bf16": True, "gradient_checkpointing": True} if name == "hf-lean" else {})
    plain = {key: value for key, value in settings.items() if key != "memory_budget"}
    train(folder / "toy", batches(2, length=16, vocab=200), plain)
    before = _memory("VmRSS")
    torch.manual_seed(0)
    with StepClock() as clock:
        done = train(folder / "base", batches(STEPS), settings)
    seconds = clock.step_seconds()
    details = {"losses": done.losses, "step_seconds": median(seconds[SKIP:]), "steps": seconds, "plan": done.says}
    details["resident_before_mib"] = before >> 20
    outputs = {"first_loss": done.losses[0], "second_loss": done.losses[1]}
    return {"value": (_memory("VmHWM") - before) / 2**20, "outputs": outputs, "details": details}


def head(name: str) -> dict[str, object]:
    """Measure the output layer and its loss alone, forward and backward, in bfloat16 autocast."""
    from deepseek.nn.linear_cross_entropy import linear_cross_entropy_sum
    from deepseek.train.memory.allocator import give_large_blocks_back

    give_large_blocks_back()  # for both: nothing that is free is counted
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(HEAD_ITEMS, HEAD_WIDTH, generator=generator).requires_grad_()
    weight = (torch.randn(HEAD_CLASSES, HEAD_WIDTH, generator=generator) * 0.02).requires_grad_()
    labels = torch.randint(HEAD_CLASSES, (HEAD_ITEMS,), generator=generator)

    def once() -> float:
        features.grad = weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            if name == "head-ours":
                loss = linear_cross_entropy_sum(features, weight, labels)
            else:
                loss = F.cross_entropy(F.linear(features, weight).float(), labels, reduction="sum")
        loss.backward(torch.tensor(1 / HEAD_ITEMS))  # type: ignore[no-untyped-call]
        return float(loss.detach()) / HEAD_ITEMS

    once()
    before = _memory("VmRSS")
    _forget_peak()
    losses, seconds = [], []
    for _ in range(3):
        start = time.perf_counter()
        losses.append(once())
        seconds.append(time.perf_counter() - start)
    gradients = sum(x.grad.nbytes for x in (features, weight) if x.grad is not None)
    found = (_memory("VmHWM") - before) / 2**20
    details = {"step_seconds": min(seconds), "gradients_mib": gradients / 2**20}
    return {"value": found, "outputs": {"head_loss": losses[0]}, "details": details}


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def prepare(folder: Path) -> None:
    """Write the checkpoints that all contestants begin with: BERT-base, and a toy to warm up on."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    BertForMaskedLM(BertConfig()).save_pretrained(folder / "base")
    toy = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForMaskedLM(toy).save_pretrained(folder / "toy")


def main() -> None:
    """Run as the command line says."""
    name, folder, result = sys.argv[1:]
    if name == "prepare":
        prepare(Path(folder))
        found: dict[str, object] = {"value": 0.0, "outputs": {}}
    else:
        found = run(name, Path(folder))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
