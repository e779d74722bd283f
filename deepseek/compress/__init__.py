"""Smaller and faster models: the compress stage of a recipe, and a short front for quantization alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.compress.config import CompressConfig as CompressConfig
    from deepseek.compress.pruning.config import PruneConfig as PruneConfig
    from deepseek.compress.pruning.prune import prune_model as prune_model
    from deepseek.compress.pruning.recover import prune_and_recover as prune_and_recover
    from deepseek.compress.pruning.recover import recover as recover
    from deepseek.compress.pruning.report import PruneReport as PruneReport
    from deepseek.compress.qat import QatReport as QatReport
    from deepseek.compress.qat import QatResult as QatResult
    from deepseek.compress.qat import train_qat as train_qat
    from deepseek.compress.quantizer import Quantizer as Quantizer
    from deepseek.compress.search import SearchReport as SearchReport
    from deepseek.compress.search import search_budget as search_budget
    from deepseek.compress.sensitivity import search_mix as search_mix
    from deepseek.compress.stage import CompressReport as CompressReport
    from deepseek.compress.stage import compress_bundle as compress_bundle

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CompressConfig": "deepseek.compress.config:CompressConfig",
        "CompressReport": "deepseek.compress.stage:CompressReport",
        "PruneConfig": "deepseek.compress.pruning.config:PruneConfig",
        "PruneReport": "deepseek.compress.pruning.report:PruneReport",
        "QatReport": "deepseek.compress.qat:QatReport",
        "QatResult": "deepseek.compress.qat:QatResult",
        "Quantizer": "deepseek.compress.quantizer:Quantizer",
        "SearchReport": "deepseek.compress.search.result:SearchReport",
        "prune_and_recover": "deepseek.compress.pruning.recover:prune_and_recover",
        "prune_model": "deepseek.compress.pruning.prune:prune_model",
        "recover": "deepseek.compress.pruning.recover:recover",
        "train_qat": "deepseek.compress.qat:train_qat",
        "compress_bundle": "deepseek.compress.stage:compress_bundle",
        "search_budget": "deepseek.compress.search.run:search_budget",
        "search_mix": "deepseek.compress.sensitivity:search_mix",
    },
)
