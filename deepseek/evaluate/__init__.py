"""Evaluation: quality and time, of any form of a model. The scores themselves are in `deepseek.metrics`."""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Latency": "deepseek.evaluate.latency:Latency",
        "bigram_loss": "deepseek.evaluate.language:bigram_loss",
        "bits_per_byte": "deepseek.evaluate.language:bits_per_byte",
        "character_error_rate": "deepseek.metrics.error_rate:character_error_rate",
        "evaluate_detection": "deepseek.evaluate.detection:evaluate_detection",
        "evaluate_segmentation": "deepseek.evaluate.segmentation:evaluate_segmentation",
        "measure": "deepseek.evaluate.latency:measure",
        "measure_generation": "deepseek.evaluate.latency:measure_generation",
        "measure_in_turn": "deepseek.evaluate.latency:measure_in_turn",
        "mixed_error_rate": "deepseek.metrics.error_rate:mixed_error_rate",
        "perplexity": "deepseek.evaluate.language:perplexity",
        "score_detections": "deepseek.metrics.detection:score_detections",
        "unigram_loss": "deepseek.evaluate.language:unigram_loss",
        "word_error_rate": "deepseek.metrics.error_rate:word_error_rate",
    },
)
