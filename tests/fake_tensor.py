"""A model of fixed shape without a network: what it answers is plain arithmetic on what it was asked. For server tests.

Inputs: `x` (batch, 3) float32, `flag` (batch,) bool, `word` (batch, any) texts. Outputs: `sum` (batch,) float32 of x,
doubled where the flag is set, and `echo` (batch, any), each word reversed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from deepseek.errors import BundleError, RequestError
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec

SIGNATURE = ModelSignature(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("flag", "BOOL", (-1,)), TensorSpec("word", "BYTES", (-1, -1))),
    (TensorSpec("sum", "FP32", (-1,)), TensorSpec("echo", "BYTES", (-1, -1))),
)
LONE = ModelSignature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


class FakeTensorModel:
    """The model of three inputs."""

    fingerprint = "three"

    def __init__(self, *, golden: bool = True) -> None:
        self._golden = golden
        self.signature = SIGNATURE
        self.runs = 0
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.may_run.wait(30)
        self.runs += 1
        with np.errstate(over="ignore"):
            total = inputs["x"].sum(1) * np.where(inputs["flag"], np.float32(2), np.float32(1))
        echo = np.empty_like(inputs["word"])
        echo.ravel()[:] = [item[::-1] for item in inputs["word"].ravel()]
        return {"sum": total.astype(np.float32), "echo": echo}

    def verify(self) -> None:
        if not self._golden:
            raise BundleError("the golden samples were answered differently")


class LoneInput:
    """A model of one input `x` (batch, 4); `y` is the sum of each half. It may fail."""

    fingerprint = "lone"

    def __init__(self) -> None:
        self.signature = LONE
        self.seconds = {1: 1e-6}  # short: it runs where the request arrives
        self.failure: Exception | None = None
        self.runs = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        if self.failure is not None:
            raise self.failure
        x = inputs["x"]
        with np.errstate(over="ignore"):
            return {"y": np.stack([x[:, 0] + x[:, 1], x[:, 2] + x[:, 3]], 1)}

    def verify(self) -> None:
        if self.failure is not None and isinstance(self.failure, RequestError):
            raise self.failure
