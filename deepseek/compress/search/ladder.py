"""The ladder: which candidates there are, from cheap to expensive to make. Not here: making them (`workshop`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from deepseek.compress.config import CompressConfig
from deepseek.quantization.config import QuantConfig

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Parts of the channels that pruned candidates lack."""


class Candidate(NamedTuple):
    """A point to make: how much is pruned (0: nothing), and the number format."""

    ratio: float
    form: str

    @property
    def name(self) -> str:
        """The candidate in words: `pruned 50%, int8 static`."""
        return f"pruned {self.ratio:.0%}, {self.form}" if self.ratio else self.form


class Rung(NamedTuple):
    """Candidates that cost about alike."""

    name: str
    candidates: tuple[Candidate, ...]


def forms(config: CompressConfig) -> dict[str, QuantConfig]:
    """Return the formats that are made after training, by name, cheap ones first."""
    made = (
        config.replace(method=method).quant_config() for method in ("bf16", "weight_only", "dynamic", "static", "int4")
    )
    return {quant.describe(): quant for quant in made}


def ladder(config: CompressConfig, *, can_train: bool, can_prune: bool) -> Iterator[Rung]:
    """Yield the rungs. Those that train are there only where there are data for it (`can_train`), and those that prune
    where the library for it is installed (`can_prune`)."""
    after_training = tuple(forms(config))
    yield Rung("number formats", tuple(Candidate(0.0, form) for form in ("fp32", *after_training)))
    yield Rung("mixed precision", (Candidate(0.0, "mixed"),))
    if can_train:
        yield Rung("int8 learned", (Candidate(0.0, "int8 qat"),))
    for ratio in RATIOS if can_train and can_prune else ():
        pruned = tuple(Candidate(ratio, form) for form in (*after_training, "mixed", "int8 qat"))
        yield Rung(f"pruned {ratio:.0%} and distilled", pruned)
