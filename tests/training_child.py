"""A training run in a process of its own, for tests that kill it: `python -m tests.training_child '{"text": ...}'`.

Options, as JSON: `text` and `output_dir`; `resume`; `pause` seconds in every step; `kill_step` (dies by SIGKILL in the
middle of that optimizer step of this process); `kill_sync` (dies at the nth file it syncs to disk); `full_from` and
`full_to` (between these steps no file may grow over 2 kB, as on a full disk). Prints the outcome as one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from deepseek import files
from deepseek.errors import DeepSeekError
from deepseek.models.gpt import GPTConfig
from deepseek.train import Trainer

STEPS = 40


def make_trainer(text: str, output_dir: str) -> Trainer:
    """Return the run: text from a file, dropout, accumulation, validation, a checkpoint every 4 steps."""
    return Trainer(
        model_config=GPTConfig(vocab_size=280, max_length=16, num_layers=2, d_model=16, num_heads=2, dropout=0.1),
        train_dataset=text,
        batch_size=4,
        learning_rate=1e-2,
        output_dir=output_dir,
        max_steps=STEPS,
        gradient_accumulation_steps=2,
        checkpoint_every=4,
        validate_every=10,
        log_every=1,
        precision="fp32",
        compile=False,
        tensorboard=False,
    )


def limit_files(size: int) -> None:
    """Let no file of this process grow over `size` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def plant_trouble(options: dict[str, Any]) -> None:
    """Arrange for what the options ask."""
    done = 0

    def in_step(*_: Any) -> None:
        nonlocal done
        done += 1
        time.sleep(options.get("pause", 0))
        if done == options.get("kill_step"):
            die()
        if done == options.get("full_from"):
            limit_files(2000)
        if done == options.get("full_to"):
            limit_files(-1)

    register_optimizer_step_pre_hook(in_step)
    synced, sync = 0, files.fsync_file

    def fsync_file(path: Path) -> None:
        nonlocal synced
        synced += 1
        if synced == options.get("kill_sync"):
            die()
        sync(path)

    files.fsync_file = fsync_file


def main() -> None:
    """Train as the options say, and print the outcome."""
    logging.basicConfig(stream=sys.stderr)
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    plant_trouble(options)
    trainer = make_trainer(options["text"], options["output_dir"])
    try:
        result = trainer.train(resume=options.get("resume", False))
    except DeepSeekError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        raise SystemExit(3) from None
    print(json.dumps({"steps": result.steps, "interrupted": result.interrupted}))


if __name__ == "__main__":
    main()
