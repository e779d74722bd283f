"""Tasks: what a model is for. One object serves training, evaluation, compression and serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.tasks.detection import Detection as Detection
    from deepseek.tasks.image_classification import ImageClassification as ImageClassification
    from deepseek.tasks.language_modeling import LanguageModeling as LanguageModeling
    from deepseek.tasks.segmentation import Segmentation as Segmentation
    from deepseek.tasks.speech import SpeechRecognition as SpeechRecognition
    from deepseek.tasks.supervised import Supervised as Supervised
    from deepseek.tasks.task import Loss as Loss
    from deepseek.tasks.task import Task as Task
    from deepseek.tasks.task import mean_loss as mean_loss

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Detection": "deepseek.tasks.detection:Detection",
        "ImageClassification": "deepseek.tasks.image_classification:ImageClassification",
        "LanguageModeling": "deepseek.tasks.language_modeling:LanguageModeling",
        "Loss": "deepseek.tasks.task:Loss",
        "Segmentation": "deepseek.tasks.segmentation:Segmentation",
        "SpeechRecognition": "deepseek.tasks.speech:SpeechRecognition",
        "Supervised": "deepseek.tasks.supervised:Supervised",
        "Task": "deepseek.tasks.task:Task",
        "mean_loss": "deepseek.tasks.task:mean_loss",
    },
)
