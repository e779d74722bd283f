"""The stages of a bundle's pipeline as serving needs them: nothing random, nothing that makes targets.

Also where a picture lies in what the model sees (`Placed`), so that boxes and masks find their way back.
Not here: the stages themselves (`deepseek.data`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek.bundle import Bundle
from deepseek.data.image.crop import CenterCrop
from deepseek.data.image.resize import Letterbox
from deepseek.data.masking import MaskTokens
from deepseek.data.pipeline.collate import collate
from deepseek.data.pipeline.pipeline import Pipeline
from deepseek.data.pipeline.stage import ROADS, Domain, Sample, Stage, StageGroup
from deepseek.data.spell_text import SpellText
from deepseek.data.tokenize import Tokenize
from deepseek.errors import BundleError, ConfigError, DataError
from deepseek.serve.forms.checks import refused

_NOT_INPUTS = ("index", "epoch", "labels", "masked_positions", "masks", "boxes", "counts")
_Written = Stage | StageGroup


class Placed(NamedTuple):
    """Where the picture lies in what the model sees: place there = place * scale + offset, for each axis."""

    sides: tuple[int, ...]
    """Of the picture as it came, (height, width) or (depth, height, width)."""
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def then(self, scale: Sequence[float], offset: Sequence[float]) -> Placed:
        """Return where it lies after one more stage."""
        return Placed(
            self.sides,
            tuple(old * new for old, new in zip(self.scale, scale, strict=True)),
            tuple(old * by + move for old, by, move in zip(self.offset, scale, offset, strict=True)),
        )


def written_stages(bundle: Bundle) -> tuple[_Written, ...]:
    """Return all stages of the bundle; none where they can't be had, as in one file with a tokenizer inside."""
    try:
        pipeline = bundle.pipeline()
    except BundleError:
        return ()
    return () if pipeline is None else pipeline.written


def serving_stages(written: Sequence[_Written]) -> list[_Written]:
    """Return the stages without those that augment, and those that make targets of texts."""
    kept: list[_Written] = []
    for one in written:
        if isinstance(one, SpellText | MaskTokens) or (isinstance(one, Stage) and one.augments):
            continue
        kept.append(dataclasses.replace(one, labels=False) if isinstance(one, Tokenize) and one.labels else one)
    return kept


def on_road(stages: Sequence[_Written], start: Domain) -> list[_Written]:
    """Return the stages of the road that `start` lies on: those of texts, of images or of sounds."""
    road = next((road for road in ROADS if start in road), (start,))
    return [one for one in stages if all(stage.takes in road for stage in _each(one))]


def starts(stages: Sequence[_Written]) -> set[Domain]:
    """Return what a sample must bring: the first domain of each road that has stages."""
    taken = {stage.takes for one in stages for stage in _each(one)}
    made = {stage.gives for one in stages for stage in _each(one) if stage.gives != stage.takes}
    return taken - made


class Road:
    """Stages that make a batch of samples; planned once, used by several threads."""

    def __init__(self, stages: Sequence[_Written]) -> None:
        self._whole = Pipeline(stages)
        self._steps = [(stage, Pipeline([stage])) for stage in self._whole.steps]

    def batch(self, samples: Sequence[Sample], field: str) -> dict[str, Tensor]:
        """Return the tensors of samples after all stages. Raises RequestError."""
        try:
            return inputs_of(self._whole.apply(samples))
        except (DataError, ConfigError) as error:
            raise refused(error, field) from error

    def placed(self, sample: Sample, field: str) -> tuple[dict[str, Tensor], Placed]:
        """Return the tensors of one image, and where the image lies in them. Raises RequestError."""
        sides = tuple(sample["image"].shape[1:])
        placed = Placed(sides, (1.0,) * len(sides), (0.0,) * len(sides))
        try:
            for stage, step in self._steps:
                before = _image_of(sample).shape[1:]
                if isinstance(stage, Letterbox):
                    sample = {**sample, **_frame(before)}
                sample = step(sample)
                placed = placed.then(*_moved(stage, before, _image_of(sample).shape[1:], sample))
                sample = {key: value for key, value in sample.items() if key not in ("boxes", "box_labels")}
            return inputs_of([sample]), placed
        except (DataError, ConfigError) as error:
            raise refused(error, field) from error


def inputs_of(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return the tensors of a batch that a model may take."""
    batch: Mapping[str, Any] = collate(samples)
    return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key not in _NOT_INPUTS}


def _image_of(sample: Sample) -> Tensor:
    image: Tensor = sample["image"] if "image" in sample else sample["pixel_values"]
    return image


def _each(one: _Written) -> tuple[Stage, ...]:
    return one.stages() if isinstance(one, StageGroup) else (one,)


def _frame(sides: Sequence[int]) -> Sample:
    """Return the whole image as a box: it follows the image, so it tells where that lies afterwards."""
    box = torch.tensor([[0.0, 0.0, float(sides[-1]), float(sides[-2])]])
    return {"boxes": box, "box_labels": torch.zeros(1, dtype=torch.int64)}


def _moved(
    stage: Stage, before: Sequence[int], after: Sequence[int], sample: Sample
) -> tuple[list[float], list[float]]:
    """Return scale and offset of each axis by one stage."""
    if isinstance(stage, CenterCrop):
        return [1.0] * len(before), [float(-((old - new) // 2)) for old, new in zip(before, after, strict=True)]
    if isinstance(stage, Letterbox):
        left, top, right, bottom = (round(side) for side in sample["boxes"][0].tolist())  # whole pixels
        return [(bottom - top) / before[0], (right - left) / before[1]], [float(top), float(left)]
    return [new / old for old, new in zip(before, after, strict=True)], [0.0] * len(before)
