"""What pruning did: sizes, operations, and how much of each part is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PruneReport:
    """Numbers of a pruning, of the original and of the smaller model."""

    parameters: tuple[int, int]
    """Weights before and after, tied ones counted once."""
    flops: tuple[int, int]
    """Floating-point operations of one pass over the example inputs (two for a multiply-add), before and after."""
    kept: dict[str, tuple[int, int]]
    """Group of units, named after its first layer -> units before and after; whole layers by their list's name."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Layers left as they are -> why."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return {
            "parameters": list(self.parameters),
            "flops": list(self.flops),
            "kept": {name: list(counts) for name, counts in self.kept.items()},
            "skipped": dict(self.skipped),
        }
