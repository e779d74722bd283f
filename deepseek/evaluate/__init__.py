"""Evaluation: quality and time, of any form of a model."""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bigram_loss": "deepseek.evaluate.language:bigram_loss",
        "bits_per_byte": "deepseek.evaluate.language:bits_per_byte",
        "measure_generation": "deepseek.evaluate.latency:measure_generation",
        "perplexity": "deepseek.evaluate.language:perplexity",
        "unigram_loss": "deepseek.evaluate.language:unigram_loss",
    },
)
