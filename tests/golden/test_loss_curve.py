"""A short training run, number by number: text file to loss curve, held against `gpt_loss_curve.txt`.

The curve may change only in a commit that means to change how training computes. Then: `python -m
tests.golden.test_loss_curve` writes it anew; look at the difference, and say in CHANGELOG.md why.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from deepseek.models.gpt import GPTConfig
from deepseek.train import Trainer
from tests.toy_gpt import write_text

GOLDEN = Path(__file__).with_name("gpt_loss_curve.txt")
TOLERANCE = 1e-4  # nats; another CPU or torch rounds otherwise


def curve(folder: Path) -> list[float]:
    """Return the losses of 20 steps and the validation loss: float32, eager, one thread, no dropout."""
    trainer = Trainer(
        model_config=GPTConfig(vocab_size=320, max_length=32, num_layers=2, d_model=32, num_heads=2),
        train_dataset=write_text(folder / "text.jsonl"),
        batch_size=4,
        learning_rate=5e-3,
        output_dir=folder / "run",
        max_steps=20,
        gradient_accumulation_steps=2,
        isolate_documents=True,
        seed=1234,
        precision="fp32",
        compile=False,
        device="cpu",
        tensorboard=False,
    )
    result = trainer.train()
    return [*result.losses, result.val_loss or 0.0]


def written(losses: list[float]) -> str:
    names = [f"step {step:2d}" for step in range(1, 21)] + ["val    "]
    return "".join(f"{name} {loss:.6f}\n" for name, loss in zip(names, losses, strict=True))


def test_the_loss_curve_is_the_golden_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that the Trainer leaves the number of threads alone
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = curve(tmp_path)
    finally:
        torch.set_num_threads(threads)
    wanted = [float(line.split()[-1]) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert found == pytest.approx(wanted, abs=TOLERANCE), f"now:\n{written(found)}\n{__doc__}"
    assert wanted[0] > 5.5 and wanted[19] < 4.0 and wanted[20] < 4.0


def main() -> None:
    """Write the golden curve."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        GOLDEN.write_text(written(curve(Path(folder))), encoding="utf-8")
    print(f"written: {GOLDEN}")


if __name__ == "__main__":
    main()
