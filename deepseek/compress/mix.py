"""A mix of number formats as data: the formats, what each layer loses in each, the order that follows, the result.

Not here: measuring the losses and trying mixes (`sensitivity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deepseek.quantization.config import LayerSettings, QuantConfig


class Level(NamedTuple):
    """A format that a layer may have."""

    name: str
    settings: LayerSettings


LEVELS = (
    Level("int8", LayerSettings(weight_bits=8)),
    Level("int4/32", LayerSettings(weight_bits=4, granularity="per_group", group_size=32)),
    Level("int4/128", LayerSettings(weight_bits=4, granularity="per_group", group_size=128)),
)
"""What is tried below floating point: int8 with a scale for each channel, int4 with one for each 32 or 128 weights."""


class LayerLoss(NamedTuple):
    """One layer in one format, all others in floating point."""

    name: str
    level: str
    bytes_saved: int
    sqnr_db: float
    """Of the model's output."""
    drop: float | None
    """Of the task's main figure, as a part of the original's; None where time was out."""
    chosen: bool = False


class Mix(NamedTuple):
    """A mixed precision that keeps the quality. `config` makes it of the original."""

    config: QuantConfig
    layers: tuple[LayerLoss, ...]
    levels: dict[str, str]
    """The format of each layer that is lowered."""
    bytes: int
    figures: dict[str, float]

    def describe(self) -> str:
        """Return the mix in words: `mixed (12 int8, 3 int4, 2 float)`."""
        names = {layer.name for layer in self.layers}
        counts = {
            "int8": sum(level == "int8" for level in self.levels.values()),
            "int4": sum(level.startswith("int4") for level in self.levels.values()),
            "float": len(names) - len(self.levels),
        }
        return f"mixed ({', '.join(f'{count} {name}' for name, count in counts.items() if count)})"


def lowering_order(losses: Sequence[LayerLoss]) -> list[LayerLoss]:
    """Return the changes of format in the order of least further loss for each further byte saved.

    A layer may appear several times, each time in a lower format; a format that saves no more than one that loses less
    is left out.
    """
    steps: list[tuple[float, LayerLoss]] = []
    for name in dict.fromkeys(loss.name for loss in losses):
        own = sorted((one for one in losses if one.name == name), key=lambda one: one.bytes_saved)
        cost, saved = 0.0, 0
        while True:
            rest = [one for one in own if one.bytes_saved > saved]
            if not rest:
                break
            rates = [(max(0.0, _cost(one) - cost) / (one.bytes_saved - saved), one) for one in rest]
            rate, best = min(rates, key=lambda pair: (pair[0], -pair[1].bytes_saved))
            steps.append((rate, best))
            cost, saved = max(cost, _cost(best)), best.bytes_saved
    return [step for _, step in sorted(steps, key=lambda pair: pair[0])]


def _cost(loss: LayerLoss) -> float:
    """Return noise power as a part of the signal's, and what the figure lost where that is known."""
    return 10 ** (-loss.sqnr_db / 10) + max(0.0, loss.drop or 0.0)
