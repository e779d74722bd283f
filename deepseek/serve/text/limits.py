"""How much one model's engine takes on: answers side by side, the queue, time, memory for keys and values.

Not here: what a single request may ask for (see `rest.schema`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepseek.config import Config


class EngineLimits(Config):
    """How much one model's engine takes on."""

    # twice as many: 9% more tokens a second, but half as long again from token to token (measured, see docs/log.md)
    max_active: int = Field(8, ge=1, le=256)
    """Answers that are generated side by side; each holds a KV cache."""
    max_queue: int = Field(64, ge=1, le=100_000)
    """Answers that may wait; a request beyond gets 429."""
    request_seconds: float = Field(600.0, gt=0, le=86_400)
    """The longest a request may take, waiting included; then it fails with 504."""
    block_size: int = Field(16, ge=1, le=1024)
    """Tokens a page of the KV cache; full pages are shared between texts that begin alike."""
    kv_bytes: int | None = Field(None, ge=1)
    """Memory for keys and values; null takes a share of the free memory, within bounds."""
    max_batch_tokens: int = Field(512, ge=1, le=1 << 20)
    """Most tokens that one step computes; longer prompts are computed in pieces."""
    prefix_cache: bool = True
    """Whether pages are kept after an answer for requests that begin with the same text."""
    weights: Literal["auto", "fp32", "bf16", "int8", "int4"] = "auto"
    """How the weights are held while serving; auto takes what the bundle has, in the fastest form of equal answers."""
    engine: Literal["auto", "own", "vllm"] = "auto"
    """What computes the answers: our engine, or vLLM; auto takes vLLM on a CUDA device, where it is installed and runs
    the model."""
