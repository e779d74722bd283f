"""Structured pruning: channels, heads, feed-forward widths and layers taken out of a model, and 2:4 sparse weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.compress.pruning.config import PruneConfig as PruneConfig
    from deepseek.compress.pruning.prune import prune_model as prune_model
    from deepseek.compress.pruning.recover import prune_and_recover as prune_and_recover
    from deepseek.compress.pruning.recover import recover as recover
    from deepseek.compress.pruning.report import PruneReport as PruneReport
    from deepseek.compress.pruning.semi_structured import compress_2_4 as compress_2_4
    from deepseek.compress.pruning.semi_structured import mask_2_4 as mask_2_4
    from deepseek.compress.pruning.semi_structured import sparsify_2_4 as sparsify_2_4

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PruneConfig": "deepseek.compress.pruning.config:PruneConfig",
        "PruneReport": "deepseek.compress.pruning.report:PruneReport",
        "compress_2_4": "deepseek.compress.pruning.semi_structured:compress_2_4",
        "mask_2_4": "deepseek.compress.pruning.semi_structured:mask_2_4",
        "prune_and_recover": "deepseek.compress.pruning.recover:prune_and_recover",
        "prune_model": "deepseek.compress.pruning.prune:prune_model",
        "recover": "deepseek.compress.pruning.recover:recover",
        "sparsify_2_4": "deepseek.compress.pruning.semi_structured:sparsify_2_4",
    },
)
