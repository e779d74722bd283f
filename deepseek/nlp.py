"""Language models by the names they have elsewhere: `deepseek.nlp.BertForSequenceClassification.from_pretrained(...)`.

Not here: the models themselves (`deepseek.models`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.models.bert import BertForSequenceClassification as BertForSequenceClassification
    from deepseek.models.pretrained.front import from_pretrained as from_pretrained

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BertForSequenceClassification": "deepseek.models.bert:BertForSequenceClassification",
        "from_pretrained": "deepseek.models.pretrained.front:from_pretrained",
    },
)
