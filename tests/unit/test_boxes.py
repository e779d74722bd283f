"""Boxes against counted pixels, the CIoU formula and a greedy loop; letterboxes there and back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn import boxes as boxes_module
from deepseek.nn.boxes import (
    batched_nms,
    box_area,
    box_iou,
    clip_boxes,
    complete_iou,
    cxcywh_to_xyxy,
    nms,
    paired_iou,
    settled,
    xyxy_to_cxcywh,
)
from deepseek.nn.letterbox import letterbox, letterbox_boxes, unletterbox_boxes


def random_boxes(number: int, side: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    corner = torch.rand(number, 2, dtype=dtype) * side
    return torch.cat((corner, corner + 1 + torch.rand(number, 2, dtype=dtype) * side / 3), dim=1)


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """The textbook: take the best box, drop what it overlaps, go on."""
    left = sorted(range(len(boxes)), key=lambda index: (-float(scores[index]), index))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if float(box_iou(boxes[best][None], boxes[other][None])) <= threshold]
    return kept


def test_conversions_are_each_others_inverse() -> None:
    boxes = random_boxes(20)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert xyxy_to_cxcywh(torch.tensor([2.0, 4.0, 8.0, 5.0])).tolist() == [5.0, 4.5, 6.0, 1.0]


def test_overlap_is_that_of_counted_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.randint(0, 20, (12, 2), generator=generator)
    boxes = torch.cat((corner, corner + torch.randint(1, 15, (12, 2), generator=generator)), dim=1)
    pixels = torch.zeros(12, 40, 40, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(pixels, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    flat = pixels.flatten(1)
    shared = (flat[:, None] & flat[None]).sum(-1)
    union = (flat[:, None] | flat[None]).sum(-1)
    torch.testing.assert_close(box_iou(boxes.float(), boxes.float()), shared / union)
    assert box_area(boxes).tolist() == flat.sum(-1).tolist()


def test_degenerate_boxes_overlap_nothing_and_give_no_nan() -> None:
    point, inside_out = torch.tensor([3.0, 3.0, 3.0, 3.0]), torch.tensor([5.0, 5.0, 1.0, 1.0])
    for box in (point, inside_out):
        assert float(paired_iou(box, box)) == 0 and float(box_area(box)) == 0
        assert bool(complete_iou(box, box).isfinite())
    assert clip_boxes(torch.tensor([-3.0, 2.0, 50.0, 70.0]), 20, 30).tolist() == [0.0, 2.0, 30.0, 20.0]


def test_16_bit_boxes_of_a_large_image_are_compared_in_float32() -> None:
    box = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    assert float(box_iou(box.half(), box.half())) == 1.0


def ciou_formula(found: list[float], wanted: list[float], alpha: float | None = None) -> tuple[float, float]:
    """CIoU and its alpha as the paper's equations have them, in plain Python."""
    wide = min(found[2], wanted[2]) - max(found[0], wanted[0])
    high = min(found[3], wanted[3]) - max(found[1], wanted[1])
    shared = max(wide, 0) * max(high, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (found, wanted)]
    iou = shared / (sum(area) - shared)
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (found, wanted)]
    diagonal = math.hypot(
        max(found[2], wanted[2]) - min(found[0], wanted[0]), max(found[3], wanted[3]) - min(found[1], wanted[1])
    )
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (found, wanted)]
    v = 4 / math.pi**2 * (angles[1] - angles[0]) ** 2
    alpha = v / (1 - iou + v) if alpha is None else alpha
    return iou - math.dist(*centres) ** 2 / diagonal**2 - alpha * v, alpha


def test_ciou_is_the_papers_formula_and_so_is_its_gradient_with_alpha_constant() -> None:
    found, wanted = random_boxes(30, dtype=torch.float64).requires_grad_(), random_boxes(30, dtype=torch.float64)
    values = complete_iou(found, wanted)
    values.sum().backward()
    for row in range(30):
        box, target = found[row].tolist(), wanted[row].tolist()
        value, alpha = ciou_formula(box, target)
        assert float(values[row].detach()) == pytest.approx(value, abs=1e-6)
        for part in range(4):
            ends = []
            for step in (-1e-5, 1e-5):
                moved = [*box]
                moved[part] += step
                ends.append(ciou_formula(moved, target, alpha)[0])
            assert float(found.grad[row, part]) == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-6)


def test_gradients_of_the_overlap_are_right() -> None:
    first, second = random_boxes(10, dtype=torch.float64), random_boxes(10, dtype=torch.float64)
    assert torch.autograd.gradcheck(paired_iou, (first.requires_grad_(), second.requires_grad_()))


def test_ciou_leads_a_box_that_overlaps_nothing_to_its_target() -> None:
    box = torch.tensor([50.0, 60.0, 60.0, 64.0], requires_grad=True)
    wanted = torch.tensor([10.0, 10.0, 30.0, 40.0])
    optimizer = torch.optim.Adam([box], lr=1.0)
    for _ in range(150):
        optimizer.zero_grad()
        (1 - complete_iou(box, wanted)).backward()
        optimizer.step()
    assert float(paired_iou(box, wanted).detach()) > 0.9


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("block", [7, 1024])
def test_suppression_is_the_greedy_loop(threshold: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes_module, "BLOCK", block)
    for number in (0, 1, 2, 60):
        boxes = random_boxes(number, side=40)
        scores = (torch.rand(number) * 10).round() / 10  # with ties
        assert nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


def test_groups_do_not_compete() -> None:
    boxes, scores, groups = random_boxes(80, side=30), torch.rand(80), torch.randint(3, (80,))
    alone = [
        index[found]
        for group in range(3)
        for index in [(groups == group).nonzero()[:, 0]]
        for found in greedy(boxes[index], scores[index], 0.4)
    ]
    found = batched_nms(boxes, scores, groups, 0.4).tolist()
    assert sorted(found) == sorted(int(index) for index in alone)
    assert found == sorted(found, key=lambda index: -float(scores[index]))


def chain(number: int) -> Tensor:
    """Boxes in a row, each overlapping the next alone: the longest dependence there can be."""
    left = torch.arange(number) * 6.0
    return torch.stack((left, torch.zeros(number), left + 10, torch.full((number,), 10.0)), dim=1)


def test_a_fixed_even_number_of_rounds_loses_no_box_and_settles_in_time() -> None:
    boxes = chain(12)
    overlapping = box_iou(boxes, boxes) > 0.2
    exact = settled(overlapping)
    assert exact.tolist() == [True, False] * 6
    for rounds in (0, 2, 4, 12):
        some = settled(overlapping, rounds)
        assert not (exact & ~some).any()
        assert some[:rounds].tolist() == exact[:rounds].tolist()
    with pytest.raises(ModelError, match="4"):
        settled(overlapping, 3)


def test_suppression_of_a_fixed_number_of_rounds_exports() -> None:
    class Suppress(nn.Module):
        def forward(self, boxes: Tensor) -> Tensor:
            return settled(box_iou(boxes, boxes) > 0.3, rounds=8)

    boxes = random_boxes(25, side=40)
    exported = torch.export.export(Suppress(), (boxes,)).module()
    other = random_boxes(25, side=40)
    assert torch.equal(exported(other), Suppress()(other))


@pytest.mark.parametrize(("height", "width"), [(30, 70), (70, 30), (64, 64), (3, 1000), (17, 23)])
def test_boxes_go_into_the_letterbox_and_back(height: int, width: int) -> None:
    image = torch.rand(3, height, width)
    boxed, placement = letterbox(image, (64, 96))
    assert boxed.shape == (3, 64, 96)
    boxes = random_boxes(10, side=1) * torch.tensor([width, height, width, height]) / 3
    boxes = clip_boxes(boxes, height, width)
    inside = letterbox_boxes(boxes, placement)
    torch.testing.assert_close(unletterbox_boxes(inside, placement), boxes, atol=1e-3, rtol=1e-4)
    whole = letterbox_boxes(torch.tensor([0.0, 0.0, width, height]), placement).tolist()
    bars = [whole[0], whole[1], 96 - whole[2], 64 - whole[3]]
    assert min(bars) > -1e-3 and abs(bars[0] - bars[2]) <= 1.001 and abs(bars[1] - bars[3]) <= 1.001
    left, top, right, bottom = (round(side) for side in whole)
    outside = torch.ones(64, 96, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert (boxed[:, outside] == 114 / 255).all()


def test_a_letterbox_follows_a_bright_square() -> None:
    image = torch.zeros(1, 3, 40, 100)
    image[..., 10:30, 60:90] = 1
    boxed, placement = letterbox(image, (64, 64))
    rows, columns = (boxed[0, 0] > 0.5).nonzero(as_tuple=True)
    bright = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    wanted = letterbox_boxes(torch.tensor([60.0, 10.0, 90.0, 30.0]), placement)
    torch.testing.assert_close(bright, wanted, atol=1.0, rtol=0)


def test_a_small_image_keeps_its_pixels_if_asked_and_others_are_refused() -> None:
    image = torch.rand(3, 10, 20)
    boxed, placement = letterbox(image, (32, 32), enlarge=False)
    assert torch.equal(boxed[:, 11:21, 6:26], image) and placement.scale_x == 1
    for wrong in (torch.zeros(10, 20), torch.zeros(3, 10, 20, dtype=torch.uint8), torch.zeros(3, 0, 20)):
        with pytest.raises(ModelError, match="letterbox takes float images"):
            letterbox(wrong, (32, 32))
