"""How much the engine of one fixed-shape model takes on."""

from __future__ import annotations

from pydantic import Field

from deepseek.config import Config

INLINE_SECONDS = 0.0003
"""Runs shorter than this are done in the caller's thread: a hop to a worker and back costs about as much."""


class TensorLimits(Config):
    """Bounds of one model's engine; the defaults suit a model that is served to other programs."""

    max_batch: int = Field(32, ge=1, le=4096)
    """The most rows of one run. The engine uses fewer where more rows at once are no faster a row."""
    max_delay_ms: float = Field(1.0, ge=0, le=1000)
    """The longest that a run waits for more rows; it waits only among runs in quick succession, never when idle."""
    max_queue: int = Field(256, ge=1, le=100_000)
    """Requests that may wait; one beyond gets 429."""
    max_rows: int = Field(1024, ge=1, le=1_000_000)
    """The most rows of one request; it runs in pieces of `max_batch`."""
    max_size: int = Field(8192, ge=1)
    """The largest size of a free dimension that the model itself sets no limit for."""
    request_seconds: float = Field(60.0, gt=0, le=86_400)
    """The longest a request may wait; then it fails with 504."""
    instances: int | None = Field(None, ge=1, le=256)
    """Runs side by side. Unset: as many as the cores hold with the threads that one run was tuned for."""
    measure_seconds: float = Field(5.0, ge=0, le=600)
    """The longest that runtimes are measured at start where the bundle has no choice for this machine; 0: never."""
