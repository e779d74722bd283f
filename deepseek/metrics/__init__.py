"""Scores and error rates, as pure functions and as accumulators over batches: `update(...)`, then `result()`.

They take tensors and texts, and know no model and no task. Not here: evaluating a model (`deepseek.evaluate`).
"""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Accuracy": "deepseek.metrics.classification:Accuracy",
        "AveragePrecision": "deepseek.metrics.detection:AveragePrecision",
        "CalibrationError": "deepseek.metrics.calibration:CalibrationError",
        "ConfusionMatrix": "deepseek.metrics.confusion:ConfusionMatrix",
        "ErrorCount": "deepseek.metrics.error_rate:ErrorCount",
        "RegressionErrors": "deepseek.metrics.regression:RegressionErrors",
        "RetrievalRecall": "deepseek.metrics.retrieval:RetrievalRecall",
        "RocAuc": "deepseek.metrics.roc:RocAuc",
        "character_error_rate": "deepseek.metrics.error_rate:character_error_rate",
        "confusion": "deepseek.metrics.confusion:confusion",
        "count_correct": "deepseek.metrics.classification:count_correct",
        "mixed_error_rate": "deepseek.metrics.error_rate:mixed_error_rate",
        "score_classes": "deepseek.metrics.classification:score_classes",
        "score_confusion": "deepseek.metrics.segmentation:score_confusion",
        "score_detections": "deepseek.metrics.detection:score_detections",
        "word_error_rate": "deepseek.metrics.error_rate:word_error_rate",
    },
)
