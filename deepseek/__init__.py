"""`import deepseek as ds`: torch's names under torch's spelling, and the road from raw data to a served model.

Nothing is loaded before its first use: a name of ours comes from the table below, every other name from torch,
with the same identity (`ds.nn.Linear is torch.nn.Linear`). Ours differ from torch's only where the table says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek import torch_paths
from deepseek.lazy import lazy_names

__version__ = "0.1.0"

_NAMES = {
    "Trainer": "deepseek.train.trainer:Trainer",
    "GPT": "deepseek.models.gpt:GPT",
    "GPTConfig": "deepseek.models.gpt:GPTConfig",
    "save": "deepseek.bundle:save",
    "load": "deepseek.bundle:load",
    "static": "deepseek.export.static:static",
    "autograd": "deepseek.autograd",
    "callbacks": "deepseek.callbacks",
    "compress": "deepseek.compress",
    "cuda": "deepseek.cuda",
    "data": "deepseek.data",
    "distributed": "deepseek.distributed",
    "errors": "deepseek.errors",
    "evaluate": "deepseek.evaluate",
    "export": "deepseek.export",
    "faults": "deepseek.faults",
    "metrics": "deepseek.metrics",
    "models": "deepseek.models",
    "nlp": "deepseek.nlp",
    "nn": "deepseek.nn",
    "optim": "deepseek.optim",
    "profiler": "deepseek.profiler",
    "quantization": "deepseek.quantization",
    "serve": "deepseek.serve",
    "tasks": "deepseek.tasks",
    "utils": "deepseek.utils",
}

__all__ = ["__version__", *_NAMES]

torch_paths.install()

if TYPE_CHECKING:
    from torch import *  # noqa: F403

    from deepseek import autograd as autograd
    from deepseek import callbacks as callbacks
    from deepseek import cuda as cuda
    from deepseek import distributed as distributed
    from deepseek import nlp as nlp
    from deepseek import nn as nn
    from deepseek import optim as optim
    from deepseek import profiler as profiler
    from deepseek import utils as utils
    from deepseek.bundle import load as load  # type: ignore[assignment]
    from deepseek.bundle import save as save  # type: ignore[assignment]
    from deepseek.export.static import static as static
    from deepseek.models.gpt import GPT as GPT
    from deepseek.models.gpt import GPTConfig as GPTConfig
    from deepseek.train.trainer import Trainer as Trainer

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES, fallback="torch")
