"""Blood cells (BCCD) through every change of geometry: boxes stay on the cells they were drawn for."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.data.image import (
    CenterCrop,
    HorizontalFlip,
    Letterbox,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    VerticalFlip,
    read_image,
)
from deepseek.data.pipeline import Pipeline, SampleStage

pytestmark = pytest.mark.realdata

NAMES = ("Platelets", "RBC", "WBC")
STAGES: list[SampleStage] = [
    Resize(size=(320, 500)),
    Letterbox(size=(416, 416)),
    CenterCrop(size=(400, 400)),
    RandomCrop(size=(360, 420), padding=20),
    RandomResizedCrop(size=(380, 380), scale=(0.3, 0.8)),
    HorizontalFlip(p=1.0),
    VerticalFlip(p=1.0),
    RandomAffine(degrees=30.0, shear=10.0),
]


def blood_sample(folder: Path, number: int) -> dict[str, Any]:
    """Return image `number` with its boxes; Pascal VOC counts pixels from 1 and includes the last one."""
    note = sorted((folder / "annotations").glob("*.xml"))[number]
    boxes, labels = [], []
    for one in ElementTree.parse(note).getroot().iter("object"):
        x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        labels.append(NAMES.index(one.findtext("name") or ""))
    return {
        "image": read_image(folder / "images" / f"{note.stem}.jpg"),
        "boxes": torch.tensor(boxes),
        "box_labels": torch.tensor(labels),
        "index": number,
    }


def purple(image: torch.Tensor) -> torch.Tensor:
    """Return how much a pixel is stained like the nucleus of a white cell: blue over green."""
    red, green, blue = image.float()
    stain: torch.Tensor = blue - green
    return stain


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_boxes_stay_on_the_white_cells(stage: SampleStage, real_data: Path) -> None:
    folder = real_data / "vision" / "bccd"
    inside, outside, seen = [], [], 0
    for number in range(6):
        sample = blood_sample(folder, number)
        found = stage.apply(sample, np.random.default_rng(number))
        height, width = found["image"].shape[1:]
        assert (found["boxes"] >= 0).all() and (found["boxes"][:, 2:] <= torch.tensor([width, height])).all()
        assert len(found["boxes"]) == len(found["box_labels"])
        covered = torch.zeros(height, width, dtype=torch.bool)
        white = found["boxes"][found["box_labels"] == NAMES.index("WBC")].round().int().tolist()
        for x1, y1, x2, y2 in white:
            covered[y1:y2, x1:x2] = True
        shown = found["image"].sum(0) > 0  # not the fill of a crop
        if covered.any():
            seen += 1
            inside.append(purple(found["image"])[covered & shown].mean().item())
            outside.append(purple(found["image"])[~covered & shown].mean().item())
    assert seen >= 3
    assert min(np.array(inside) - np.array(outside)) > 10, (inside, outside)


def test_a_detection_batch_of_real_images(real_data: Path) -> None:
    folder = real_data / "vision" / "bccd"
    pipeline = Pipeline([HorizontalFlip(), RandomAffine(), Letterbox(size=256)], seed=3)
    batch = pipeline([blood_sample(folder, number) for number in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 256, 256) and batch["boxes"].shape[2] == 5
    assert batch["counts"].min() > 0 and batch["boxes"][..., 1:].max() <= 1
