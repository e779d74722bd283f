"""How a model is pruned, as typed settings. Not here: the pruning (`prune`) and the training after it (`recover`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepseek.config import Config

Part = Literal["channels", "heads", "ffn", "layers"]
"""What can be taken out: channels of convolutions (and of plain linear layers), attention heads, the inner width of
feed-forward layers and experts, whole residual blocks."""


class PruneConfig(Config):
    """What to take out of a model, how much of it, and by what measure."""

    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of each part to take out, below 1."""
    what: list[Part] = Field(default=["channels", "heads", "ffn"], min_length=1)
    """The parts: channels, heads, ffn, layers."""
    importance: Literal["l1", "l2", "bn_scale", "taylor"] = "l1"
    """What makes a unit worth keeping: the size of its weights, the scale of its norm, or how much the loss would
    change without it (needs a task and batches)."""
    global_ranking: bool = False
    """Rank channels and widths of all layers together; a layer may then lose up to 90%. Heads keep one share in every
    layer, so that one cache of keys and values serves all."""
    iterative_steps: int = Field(default=1, ge=1, le=1000)
    """In how many steps; what is important is measured anew before each."""
    skip: list[str] = []
    """Modules to leave as they are: names, `*` and `?` allowed."""
    round_to: int = Field(default=8, ge=1, le=1024)
    """Numbers of channels and widths left are multiples of this, which fast kernels want."""
