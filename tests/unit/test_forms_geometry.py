"""Boxes and masks find their way back to the picture, whatever its size and the pipeline's stages."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.image.crop import CenterCrop
from deepseek.data.image.normalize import Normalize
from deepseek.data.image.resize import Letterbox, Resize
from deepseek.data.pipeline.pipeline import Pipeline
from deepseek.data.pipeline.stage import Stage
from deepseek.serve.forms.boxes import in_picture
from deepseek.serve.forms.masks import mask_in_picture, runs_of
from deepseek.serve.forms.stages import Road

SIDE = st.integers(1, 300)
TARGET = st.integers(8, 96)
LETTERBOX = st.builds(lambda h, w: Letterbox(size=(h, w)), TARGET, TARGET)
RESIZE = st.builds(lambda h, w: Resize(size=(h, w)), TARGET, TARGET)
COVER = st.builds(lambda h, w: Resize(size=(h, w), keep_aspect=True), TARGET, TARGET)
CROP = st.builds(lambda h, w: CenterCrop(size=(h, w)), TARGET, TARGET)
STAGES = st.lists(LETTERBOX | RESIZE | COVER, min_size=1, max_size=3)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.zeros(1, height, width, dtype=torch.uint8)


@settings(max_examples=120, deadline=None)
@given(SIDE, SIDE, STAGES, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_that_stages_moved_come_back(height: int, width: int, stages: list[Stage], shares: list[float]) -> None:
    if max(height, width) / min(height, width) > 40:
        return  # so long that covering a size makes sides beyond all bounds
    x1, x2 = sorted(share * width for share in shares[:2])
    y1, y2 = sorted(share * height for share in shares[2:])
    boxes = torch.tensor([[x1, y1, x2, y2]])
    sample = {"image": picture(height, width), "boxes": boxes, "box_labels": torch.zeros(1, dtype=torch.int64)}
    moved = Pipeline(stages)(sample)["boxes"]  # by the stages' own code for training
    _, placed = Road(stages).placed({"image": picture(height, width)}, "image")
    back = in_picture(moved.double(), placed)
    tolerance = max(height, width) * 1e-4 + 1e-3
    np.testing.assert_allclose(back, boxes.double(), atol=tolerance)


@settings(max_examples=80, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), CROP, st.sampled_from([None, 2]))
def test_a_middle_crop_is_undone(height: int, width: int, crop: CenterCrop, factor: int | None) -> None:
    stages: list[Stage] = [crop, *([Resize(size=(crop.size[0] * factor, crop.size[1] * factor))] if factor else [])]  # type: ignore[index]
    middle = torch.tensor([[width / 2 - 2, height / 2 - 3, width / 2 + 2, height / 2 + 3]])
    sample = {"image": picture(height, width), "boxes": middle, "box_labels": torch.zeros(1, dtype=torch.int64)}
    moved = Pipeline(stages)(sample)["boxes"]
    _, placed = Road([*stages, Normalize(mean=(0.5,), std=(0.5,))]).placed({"image": picture(height, width)}, "image")
    np.testing.assert_allclose(in_picture(moved.double(), placed), middle, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(24, 160), st.integers(24, 160), LETTERBOX | RESIZE, st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_mask_that_a_stage_moved_comes_back(height: int, width: int, stage: Stage, down: float, right: float) -> None:
    row, column = int(height * down), int(width * right)
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[row:, column:] = 2
    moved = Pipeline([stage])({"image": picture(height, width), "mask": mask})["mask"]
    _, placed = Road([stage]).placed({"image": picture(height, width)}, "image")
    back = mask_in_picture(moved, placed)
    assert back.shape == mask.shape
    near_y, near_x = (math.ceil(1 / scale) + 1 for scale in placed.scale)
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clear = ((ys - row).abs() > near_y) & ((xs - column).abs() > near_x)
    assert torch.equal(back[clear], mask[clear])


def test_what_a_crop_cut_away_is_background() -> None:
    _, placed = Road([CenterCrop(size=(4, 6))]).placed({"image": picture(8, 8)}, "image")
    back = mask_in_picture(torch.ones(4, 6, dtype=torch.int64), placed)
    wanted = torch.zeros(8, 8, dtype=torch.int64)
    wanted[2:6, 1:7] = 1
    assert torch.equal(back, wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_runs_give_the_mask_back(classes: list[int]) -> None:
    runs = runs_of(np.array(classes, dtype=np.uint8))
    assert [label for label, length in runs for _ in range(length)] == classes
    assert all(first[0] != second[0] for first, second in zip(runs, runs[1:], strict=False))
