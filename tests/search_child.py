"""A search for a budget in a process of its own, to be killed: `python -m tests.search_child BUNDLE OUT`.

Before each candidate it writes its name to standard output. It trains, and is given all the time it wants.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from deepseek.compress import CompressConfig
from deepseek.compress.search import search_budget
from tests.toy_compress import spots


def main(bundle: str, out: str) -> None:
    """Search the whole ladder up to int8 that is learned; print what is chosen last."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    config = CompressConfig(
        size="4.6kB", max_drop="3%", runtimes=["eager"], training_steps=40, learning_rate=3e-3, time="5m"
    )
    report = search_budget(
        Path(bundle),
        Path(out),
        spots(384, seed=2),
        config=config,
        train_data=spots(1024, seed=1),
        on_point=lambda progress: print(progress.candidate, flush=True),
    )
    print(f"chosen {report.chosen}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
