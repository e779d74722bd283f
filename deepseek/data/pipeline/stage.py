"""What a pipeline is made of: samples, the domain each stage works in, and the kinds of stages.

A sample is a dict by the field's names. A stage is a pure function of the sample and of random numbers that it is
given; it returns a new dict and changes nothing in place. Not here: their order (`plan`) and running (`pipeline`).

| key | what |
|---|---|
| `waveform`, `sample_rate` | float32 (time,) or (channels, time), full scale 1; Hz |
| `spectrogram` | float32 (frames, num_mels), natural log of mel energies |
| `input_features` | float32 (frames, features) |
| `image` | uint8 or float32 (channels, *space), space (height, width) or (depth, height, width) |
| `pixel_values` | float32 (channels, *space), normalised |
| `text`, `input_ids` | str; int64 (time,) |
| `label` | int, the class; or float32 (num_labels,), each class's share |
| `labels` | int64 (time,), target tokens |
| `mask` | int64 (*space), the class of each pixel |
| `row` | dict of a table's cells by column: numbers and text |
| `boxes`, `box_labels` | float32 (n, 4), x1 y1 x2 y2 in pixels; int64 (n,) |
| `index`, `epoch` | ints: the sample's place in its data set, and the round it is read for |
| `path` | str: the file it comes from, for messages |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np

Sample = dict[str, Any]
"""One example, by the names above. Stages leave keys they don't know as they are."""


class Domain(StrEnum):
    """What a sample is at a point of the pipeline; the value is the key that holds it."""

    WAVEFORM = "waveform"
    SPECTROGRAM = "spectrogram"
    FEATURES = "input_features"
    IMAGE = "image"
    PIXELS = "pixel_values"
    TEXT = "text"
    TOKENS = "input_ids"
    ROW = "row"


ROADS: tuple[tuple[Domain, ...], ...] = (
    (Domain.WAVEFORM, Domain.SPECTROGRAM, Domain.FEATURES),
    (Domain.IMAGE, Domain.PIXELS),
    (Domain.TEXT, Domain.TOKENS),
)
"""The domains that stages turn into one another, in order. A sample may be on several roads at once."""


class Stage(ABC):
    """A step of a pipeline: it takes samples in domain `takes` and leaves them in domain `gives`.

    Leaves are frozen dataclasses derived from `SampleStage` or `BatchStage`, whose fields are the settings: they print
    as they were written, pickle, and become YAML. Settings are checked in `__post_init__`, which raises ConfigError.
    `augments` marks a stage that is for training alone: `Pipeline.without_augmentation` leaves it out.
    """

    takes: ClassVar[Domain]
    gives: ClassVar[Domain]
    augments: ClassVar[bool] = False


class SampleStage(Stage):
    """A stage that looks at one sample at a time."""

    @abstractmethod
    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the changed sample. `rng` depends on (seed, epoch, index, place of the stage) alone.

        Raises DataError for a sample it can't use.
        """


class LearnedStage(SampleStage):
    """A stage some of whose settings come from the training data: the alphabet of texts, the mean of a column.

    Until `learned` was called, `is_learned` is False and `apply` raises DataError.
    """

    @property
    @abstractmethod
    def is_learned(self) -> bool:
        """Whether all settings are there."""

    @abstractmethod
    def learned(self, samples: Iterable[Sample]) -> Self:
        """Return the stage with what it takes from the training samples. Raises DataError where they don't serve."""


class BatchStage(Stage):
    """A stage that needs the samples of a batch together, such as MixUp."""

    @abstractmethod
    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """Return as many samples as came. `rng` depends on (seed, epoch, the batch's indices, place of the stage)."""


class StageGroup(ABC):
    """Several stages under one name, which the plan may set other stages between."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in order."""
