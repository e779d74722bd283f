"""Windows of computed tomography: the part of the scale of Hounsfield units that matters, brought to 0 to 1.

Source: DICOM PS3.3, C.11.2.1.3.2, the function LINEAR_EXACT (https://dicom.nema.org).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from deepseek.data.image.settings import sample_image
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError


def window(image: Tensor, level: float, width: float) -> Tensor:
    """Return float32 from 0 to 1 of values in any shape: level - width / 2 becomes 0, level + width / 2 becomes 1.

    What lies beyond is cut. Raises ConfigError for a width that is not above 0.
    """
    _check(level, width)
    return image.float().sub(level - width / 2).div_(width).clamp_(0, 1)


def _check(level: float, width: float) -> None:
    if not math.isfinite(level) or not 0 < width < math.inf:
        found = f"level {level}, width {width}"
        raise ConfigError("no window", found=found, wanted="a level and a width above 0, both finite")


@dataclass(frozen=True)
class Window(SampleStage):
    """Brings an image in Hounsfield units to float32 from 0 to 1; what lies outside the window is cut.

    Usual windows (level, width): lung (-600, 1500), soft tissue (50, 400), brain (40, 80), bone (400, 1800).
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE

    level: float
    width: float

    def __post_init__(self) -> None:
        _check(self.level, self.width)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with its image in the window. Raises DataError for an image of another form."""
        return {**sample, "image": window(sample_image(sample, flat=False), self.level, self.width)}
