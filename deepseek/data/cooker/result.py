"""What a finished run says of itself: `CookReport`, also written as `report.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deepseek.data.cooker.tally import Tally


@dataclass(frozen=True)
class CookReport:
    """Counts, examples and histograms of a run, and where its files are."""

    input: str
    output: str
    undo_log: str
    report: str | None
    """The HTML page, if one was asked for; the JSON file beside it has the same name with .json."""
    documents_in: int
    documents_out: int
    seconds: float
    tally: Tally
    config: dict[str, Any]
    length_unit: str
    """How tokens were counted: the tokenizer's path, or "estimate"."""
    duplicates_quality: dict[str, Any] | None = None
    """How well planted copies are found in a sample of the output; only measured where a page was asked for."""

    def dropped(self) -> dict[str, int]:
        """Return how many documents each rule dropped, in order."""
        return {name: rule.dropped for name, rule in self.tally.rules.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
