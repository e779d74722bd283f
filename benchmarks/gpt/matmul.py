"""How fast a training step would be if it were only its matrix products: bare bf16 `torch.mm` at the model's shapes.

Counts the linear layers and the output head, forward and both backward products. Attention's own products are left
out on both sides, so the fraction "step / bare" is on the low side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpt.workload import Workload

REPEATS = 30


class Product(NamedTuple):
    """`times` linear layers (rows, inputs) -> (rows, outputs) in one step."""

    rows: int
    inputs: int
    outputs: int
    times: int

    @property
    def flops(self) -> int:
        """Floating-point operations of forward and backward, a multiply-add counted as two."""
        return 3 * 2 * self.rows * self.inputs * self.outputs * self.times


def products(workload: Workload) -> list[Product]:
    """Return the linear layers of one training step."""
    rows, width = workload.tokens_per_step, workload.width
    return [
        Product(rows, width, 3 * width, workload.layers),
        Product(rows, width, width, workload.layers),
        Product(rows, width, 4 * width, workload.layers),
        Product(rows, 4 * width, width, workload.layers),
        Product(rows, width, workload.vocab_size, 1),
    ]


def matmul_run(workload: Workload, repeats: int = REPEATS) -> dict[str, object]:
    """Measure; the value is tokens per second of a step that is nothing but these products."""
    shapes, seconds, flops = {}, 0.0, 0
    for product in products(workload):
        took = sum(_median_seconds(call, repeats) for call in _calls(product))
        shapes[f"{product.rows}x{product.inputs}x{product.outputs}"] = product.flops / product.times / took / 1e12
        seconds += took * product.times
        flops += product.flops
    details = {"teraflops": flops / seconds / 1e12, "teraflops_by_shape": shapes, "gigaflops_per_step": flops / 1e9}
    return {"value": workload.tokens_per_step / seconds, "outputs": {}, "details": details}


def _calls(product: Product) -> Iterator[Callable[[], Tensor]]:
    """Yield forward, gradient of the input and gradient of the weight, laid out as `nn.Linear` has them."""
    x = torch.randn(product.rows, product.inputs).bfloat16()
    weight = torch.randn(product.outputs, product.inputs).bfloat16()
    gradient = torch.randn(product.rows, product.outputs).bfloat16()
    yield lambda: torch.mm(x, weight.T)
    yield lambda: torch.mm(gradient, weight)
    yield lambda: torch.mm(gradient.T, x)


def _median_seconds(call: Callable[[], Tensor], repeats: int) -> float:
    took = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return median(took[3:])
