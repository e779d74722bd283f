"""Compression with a budget: a ladder of candidates from cheap to expensive, each made and measured on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.compress.search.result import SearchReport as SearchReport
    from deepseek.compress.search.run import search_budget as search_budget

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SearchReport": "deepseek.compress.search.result:SearchReport",
        "search_budget": "deepseek.compress.search.run:search_budget",
    },
)
