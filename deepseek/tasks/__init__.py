"""Tasks: what a model is for. One object serves training, evaluation, compression and serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.tasks.build import build_task as build_task
    from deepseek.tasks.classification import Classification as Classification
    from deepseek.tasks.contrastive import Contrastive as Contrastive
    from deepseek.tasks.detection import Detection as Detection
    from deepseek.tasks.diffusion import Diffusion as Diffusion
    from deepseek.tasks.distillation import Distillation as Distillation
    from deepseek.tasks.energies_forces import EnergiesForces as EnergiesForces
    from deepseek.tasks.image_classification import ImageClassification as ImageClassification
    from deepseek.tasks.language_modeling import LanguageModeling as LanguageModeling
    from deepseek.tasks.masked_lm import MaskedLanguageModeling as MaskedLanguageModeling
    from deepseek.tasks.regression import Regression as Regression
    from deepseek.tasks.segment_language_modeling import SegmentLanguageModeling as SegmentLanguageModeling
    from deepseek.tasks.segmentation import Segmentation as Segmentation
    from deepseek.tasks.seq2seq import SequenceToSequence as SequenceToSequence
    from deepseek.tasks.speech import SpeechRecognition as SpeechRecognition
    from deepseek.tasks.supervised import Supervised as Supervised
    from deepseek.tasks.task import Evaluator as Evaluator
    from deepseek.tasks.task import Loss as Loss
    from deepseek.tasks.task import Task as Task
    from deepseek.tasks.task import evaluate as evaluate
    from deepseek.tasks.task import mean_loss as mean_loss

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Classification": "deepseek.tasks.classification:Classification",
        "Contrastive": "deepseek.tasks.contrastive:Contrastive",
        "Detection": "deepseek.tasks.detection:Detection",
        "Diffusion": "deepseek.tasks.diffusion:Diffusion",
        "Distillation": "deepseek.tasks.distillation:Distillation",
        "EnergiesForces": "deepseek.tasks.energies_forces:EnergiesForces",
        "Evaluator": "deepseek.tasks.task:Evaluator",
        "ImageClassification": "deepseek.tasks.image_classification:ImageClassification",
        "LanguageModeling": "deepseek.tasks.language_modeling:LanguageModeling",
        "Loss": "deepseek.tasks.task:Loss",
        "MaskedLanguageModeling": "deepseek.tasks.masked_lm:MaskedLanguageModeling",
        "Regression": "deepseek.tasks.regression:Regression",
        "SegmentLanguageModeling": "deepseek.tasks.segment_language_modeling:SegmentLanguageModeling",
        "Segmentation": "deepseek.tasks.segmentation:Segmentation",
        "SequenceToSequence": "deepseek.tasks.seq2seq:SequenceToSequence",
        "SpeechRecognition": "deepseek.tasks.speech:SpeechRecognition",
        "Supervised": "deepseek.tasks.supervised:Supervised",
        "Task": "deepseek.tasks.task:Task",
        "build_task": "deepseek.tasks.build:build_task",
        "evaluate": "deepseek.tasks.task:evaluate",
        "mean_loss": "deepseek.tasks.task:mean_loss",
    },
)
