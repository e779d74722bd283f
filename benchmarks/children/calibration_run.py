"""One run of `calibration_memory`: `python -m benchmarks.children.calibration_run SAMPLES RESULT`.

The value is the most resident memory (VmHWM of proc(5)) while BERT-base is calibrated by KL and quantized, in GiB above
what the process held with the model built: activations, histograms and the int8 copy are in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH = 8, 128


def batches(samples: int, vocab: int) -> Iterator[dict[str, Tensor]]:
    """Yield `samples` rows of random tokens, each batch made when it is asked for."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(samples // ROWS):
        yield {"input_ids": torch.randint(vocab, (ROWS, LENGTH), generator=generator)}


def run(samples: int) -> dict[str, Any]:
    """Calibrate and quantize; return the value, the quality of the copy, and the seconds."""
    from deepseek.models import build
    from deepseek.quantization import QuantConfig, quantize_with_report
    from deepseek.quantization.report import sqnr_db

    torch.manual_seed(0)
    model: Any = build("bert-base").eval()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = memory("VmRSS")
    start = time.perf_counter()
    config = QuantConfig(method="static", calibration="kl", quant_scheme="asymmetric")
    quantized, report = quantize_with_report(model, config, batches(samples, model.config.vocab_size))
    seconds = time.perf_counter() - start
    value = (memory("VmHWM") - before) / 2**30
    example = next(batches(ROWS, model.config.vocab_size))
    with torch.no_grad():
        exact, rounded = (found(**example)[0] for found in (model, quantized))
    return {
        "value": value,
        "outputs": {"layers": float(len(report.layers))},
        "details": {"samples": samples, "seconds": seconds, "sqnr_db": sqnr_db(exact, rounded)},
    }


def memory(name: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(int(sys.argv[1]))))
