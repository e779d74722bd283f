"""Cleaning of text before training: rules that repair, drop and count, and the search for duplicates (`dedup`)."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.cooker.bertscore import bert_score
    from deepseek.data.cooker.config import CookerConfig
    from deepseek.data.cooker.cooker import DataCooker, Progress
    from deepseek.data.cooker.language import identify
    from deepseek.data.cooker.mojibake import repair
    from deepseek.data.cooker.result import CookReport
    from deepseek.data.cooker.rules.personal_data import find_personal_data
    from deepseek.data.cooker.sentence_split import sentences
    from deepseek.data.cooker.undo import restore
    from deepseek.data.cooker.word_search import WordSearch

__all__ = [
    "CookReport",
    "CookerConfig",
    "DataCooker",
    "Progress",
    "WordSearch",
    "bert_score",
    "find_personal_data",
    "identify",
    "repair",
    "restore",
    "sentences",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CookReport": "deepseek.data.cooker.result:CookReport",
        "CookerConfig": "deepseek.data.cooker.config:CookerConfig",
        "DataCooker": "deepseek.data.cooker.cooker:DataCooker",
        "Progress": "deepseek.data.cooker.cooker:Progress",
        "WordSearch": "deepseek.data.cooker.word_search:WordSearch",
        "bert_score": "deepseek.data.cooker.bertscore:bert_score",
        "find_personal_data": "deepseek.data.cooker.rules.personal_data:find_personal_data",
        "identify": "deepseek.data.cooker.language:identify",
        "repair": "deepseek.data.cooker.mojibake:repair",
        "restore": "deepseek.data.cooker.undo:restore",
        "sentences": "deepseek.data.cooker.sentence_split:sentences",
    },
)
