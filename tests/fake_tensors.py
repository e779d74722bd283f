"""Models of fixed shape without weights, and tiny bundles, for tests of the service."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import torch

import deepseek as ds
from deepseek.errors import BundleError
from deepseek.models.mlp import MLP, MLPConfig
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec


class FakeTensorModel:
    """Adds `bias` to what it gets. It can be slow, fail its golden samples, or wait to be checked."""

    signature = ModelSignature(
        (TensorSpec("x", "FP32", (-1, 2)),),
        (TensorSpec("y", "FP32", (-1, 2)),),
        axes={"x": ("batch", None)},
        output_axes={"y": ("batch", None)},
    )

    def __init__(self, bias: float = 0.0, *, seconds: float = 0.0, golden: bool = True) -> None:
        self._bias = bias
        self._seconds = seconds
        self._golden = golden
        self.may_verify = threading.Event()
        self.may_verify.set()

    def run(self, inputs):
        time.sleep(self._seconds)
        return {"y": inputs["x"] + np.float32(self._bias)}

    def verify(self):
        self.may_verify.wait(30)
        if not self._golden:
            raise BundleError("the golden samples were answered differently")


def mlp_bundle(path: Path, seed: int = 0, **config) -> Path:
    """Write a tiny classifier of tables as a bundle."""
    torch.manual_seed(seed)
    model = MLP(MLPConfig(**{"input_shape": [4], "hidden_sizes": [8], "num_labels": 3, **config}))
    return ds.save(model, path, task="classification")
