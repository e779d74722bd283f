"""Rule `language`: documents in other languages than the wanted ones are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek.data.cooker.config import LanguageConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.language import UNDETERMINED, identify


@dataclass(frozen=True)
class Language:
    """Keeps the wanted languages; with none named all are kept, and the report counts them."""

    config: LanguageConfig
    name = "language"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return why the document is given up, with the language found as the value."""
        wanted = self.config.keep
        if not wanted:
            return None
        code, confidence = identify(draft.text)
        if code == UNDETERMINED or confidence < self.config.min_confidence:
            return None if self.config.keep_undetermined else Drop("language not clear", code)
        return None if code in wanted else Drop("another language", code)
