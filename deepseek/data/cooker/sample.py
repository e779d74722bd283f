"""How well duplicates are found in a run's own output: copies are planted in a sample of it, by `dedup.quality`.

Not here: the measure itself.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepseek.data.cooker.config import DuplicatesConfig
from deepseek.data.cooker.draft import texts_of
from deepseek.errors import DataError

_SAMPLE = 400
_LONGEST = 4000


def duplicates_quality(output: Path, config: DuplicatesConfig) -> dict[str, Any] | None:
    """Return `QualityReport` as plain values for 400 documents of `output` drawn at random (the first 4000 characters
    of each), or None where the rule is off or too few documents are there."""
    if not config.enabled:
        return None
    from deepseek.data.cooker.dedup.quality import measure_quality

    try:
        return asdict(measure_quality(_drawn(output), config.method, config.threshold, sample=_SAMPLE, workers=1))
    except DataError:
        return None  # fewer than 20 different documents: nothing to measure on


def _drawn(output: Path) -> list[str]:
    """Return a sample of the documents' texts, each as likely as any other (Vitter 1985, algorithm R)."""
    rng = random.Random(0)  # noqa: S311 - a sample, not a secret
    lines: list[str] = []
    with open(output, encoding="utf-8", newline="\n") as handle:
        for number, line in enumerate(handle):
            if number < _SAMPLE:
                lines.append(line)
            elif (place := rng.randrange(number + 1)) < _SAMPLE:
                lines[place] = line
    return ["\n".join(texts_of(json.loads(line)))[:_LONGEST] for line in lines]
