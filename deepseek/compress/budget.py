"""What a compressed model has to meet. Not here: how much worse it may be (`quality`), and the search for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from deepseek.compress.units import parse_latency, parse_seconds, parse_size


class Budget(NamedTuple):
    """Limits of a search: bytes of the weights on disk, median milliseconds of one sample, seconds to search."""

    bytes: int | None = None
    latency_ms: float | None = None
    seconds: float = 600.0

    @classmethod
    def parse(cls, size: str | None, latency: str | None, time: str = "10m") -> Self:
        """Read `1.2MB`, `20ms`, `10m`. Raises ConfigError, naming the wrong one."""
        return cls(
            parse_size(size) if size is not None else None,
            parse_latency(latency) if latency is not None else None,
            parse_seconds(time),
        )

    def excess(self, point: Mapping[str, Any]) -> float:
        """Return how far past the limits a measured point is: 1 is met, 1.5 is half too much of the worst one."""
        shares = [1.0]
        if self.bytes is not None:
            shares.append(point["bytes"] / self.bytes)
        if self.latency_ms is not None:
            shares.append(point["latency_ms"] / self.latency_ms)
        return float(max(shares))

    def fits(self, point: Mapping[str, Any]) -> bool:
        """Return whether a measured point is within size and latency."""
        return self.excess(point) <= 1.0

    def __str__(self) -> str:
        parts = []
        if self.bytes is not None:
            parts.append(f"at most {self.bytes / 1e6:.4g} MB")
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:.4g} ms" if parts else f"at most {self.latency_ms:.4g} ms")
        return " and ".join(parts)
