"""YOLOv5: published sizes, maps, decoding, target assignment and loss against plain loops, and one image learnt."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek.errors import ConfigError, ModelError
from deepseek.evaluate.detection import evaluate_detection
from deepseek.models import build
from deepseek.models.yolov5 import STRIDES, YOLOv5, YOLOv5Config, YOLOv5Maps
from deepseek.nn.boxes import cxcywh_to_xyxy
from deepseek.nn.csp import SPPF
from deepseek.nn.detection_loss import MAP_BALANCE, Gains, detection_loss
from deepseek.nn.yolo_targets import assign_targets
from deepseek.tasks.detection import Detection
from tests.unit.test_boxes import ciou_formula

ANCHORS = [[[8.0, 8.0], [16.0, 8.0]], [[16.0, 16.0], [16.0, 32.0]], [[32.0, 32.0], [48.0, 48.0]]]
PUBLISHED = {
    "n": (1_872_157, 1_867_405),
    "s": (7_235_389, 7_225_885),
    "m": (21_190_557, 21_172_173),
    "l": (46_563_709, 46_533_693),
    "x": (86_749_405, 86_705_005),
}
"""Numbers of weights in training, and with each batch norm folded into its convolution, which then has a bias."""


def toy(**changes: object) -> YOLOv5:
    sizes = {"num_labels": 2, "depth_multiple": 0.1, "width_multiple": 0.03, "anchors": ANCHORS}
    return YOLOv5(YOLOv5Config(**{**sizes, **changes}))


def some_boxes(images: int = 3, rows: int = 6, classes: int = 2) -> tuple[Tensor, Tensor]:
    """Boxes at random, some with a centre on a cell's border or middle, and padding that says nothing."""
    boxes = torch.rand(images, rows, 5) * 0.8 + 0.1
    boxes[:, :, 0] = torch.randint(classes, (images, rows))
    boxes[:, 0, 1:3] = torch.tensor([0.5, 0.0625])
    counts = torch.arange(images) * 2
    boxes[torch.arange(rows) >= counts[:, None]] = 0
    return boxes, counts


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_of_the_zoo_have_the_published_number_of_weights(size: str) -> None:
    with torch.device("meta"):
        model = build(f"yolov5{size}")
    weights = sum(p.numel() for p in model.parameters())
    norms = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert (weights, weights - norms) == PUBLISHED[size]


def test_the_smallest_size_does_the_published_work_at_640_pixels() -> None:
    """4.5 GFLOPs; the two that fold batch norm or not differ in the third place."""
    with torch.device("meta"):
        model = build("yolov5n").eval()
        pixels = torch.zeros(1, 3, 640, 640)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    assert counter.get_total_flops() / 1e9 == pytest.approx(4.5, abs=0.05)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 32, 96), (1, 160, 64)])
def test_each_map_has_its_stride_and_decode_lists_all_cells(batch: int, height: int, width: int) -> None:
    model = toy().eval()
    with torch.no_grad():
        maps = model(torch.rand(batch, 3, height, width))
    cells = 0
    for raw, stride in zip(maps, STRIDES, strict=True):
        assert raw.shape == (batch, 2, height // stride, width // stride, 7)
        cells += 2 * (height // stride) * (width // stride)
    boxes, scores = model.decode(maps)
    assert boxes.shape == (batch, cells, 4) and scores.shape == (batch, cells, 2)
    assert bool((boxes[..., 2:] > boxes[..., :2]).all()) and 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_decoding_is_the_published_formula_cell_by_cell() -> None:
    model = toy()
    maps = YOLOv5Maps(*(torch.randn(1, 2, 64 // stride, 96 // stride, 7) for stride in STRIDES))
    boxes, scores = model.decode(maps)
    row = 0
    for raw, anchors, stride in zip(maps, ANCHORS, STRIDES, strict=True):
        for anchor, y, x in itertools.product(range(2), range(64 // stride), range(96 // stride)):
            s = [1 / (1 + math.exp(-value)) for value in raw[0, anchor, y, x].tolist()]
            centre = [(2 * s[0] - 0.5 + x) * stride, (2 * s[1] - 0.5 + y) * stride]
            sides = [(2 * s[2]) ** 2 * anchors[anchor][0], (2 * s[3]) ** 2 * anchors[anchor][1]]
            wanted = [centre[0] - sides[0] / 2, centre[1] - sides[1] / 2]
            wanted += [centre[0] + sides[0] / 2, centre[1] + sides[1] / 2]
            assert boxes[0, row].tolist() == pytest.approx(wanted, abs=1e-3)
            assert scores[0, row].tolist() == pytest.approx([s[4] * s[5], s[4] * s[6]], abs=1e-5)
            row += 1
    assert row == boxes.shape[1]


def test_fast_pooling_is_the_pyramid_side_by_side() -> None:
    block = SPPF(8, 6).eval()
    x = torch.randn(2, 8, 9, 7)
    reduced = block.reduce(x)
    pooled = [F.max_pool2d(reduced, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(block(x), block.join(torch.cat([reduced, *pooled], dim=1)))


def matches(box: list[float], anchors: list[list[float]], rows: int, columns: int, stride: int) -> set[tuple[int, ...]]:
    """All (anchor, row, column) that learn a box, by trying every cell."""
    x, y, width, height = (value * size for value, size in zip(box, (columns, rows, columns, rows), strict=True))
    own = (min(int(x), columns - 1), min(int(y), rows - 1))
    found = set()
    for number, anchor in enumerate(anchors):
        ratios = [width * stride / anchor[0], height * stride / anchor[1]]
        if max(max(ratio, 1 / ratio) for ratio in ratios) >= 4:
            continue
        for row, column in itertools.product(range(rows), range(columns)):
            across, down = x - column, y - row  # from the cell's corner, in cells
            beside = row == own[1] and abs(column - own[0]) == 1 and -0.5 < across < 1.5 and across != 0.5
            above = column == own[0] and abs(row - own[1]) == 1 and -0.5 < down < 1.5 and down != 0.5
            if (column, row) == own or beside or above:
                found.add((number, row, column))
    return found


@pytest.mark.parametrize("stride", STRIDES)
def test_targets_are_those_found_by_trying_every_cell(stride: int) -> None:
    boxes, counts = some_boxes(images=4, rows=7)
    boxes[3, 1, 1:3], boxes[3, 2, 1:3] = torch.tensor([1.0, 0.0]), torch.tensor([0.01, 0.99])  # corners
    rows, columns, level = 64 // stride, 96 // stride, STRIDES.index(stride)
    targets = assign_targets(boxes, counts, ANCHORS[level], (rows, columns), stride)
    for image, number in enumerate(counts.tolist()):
        assert not targets.valid[image, number:].any()
        for index in range(number):
            valid = targets.valid[image, index]
            cells = targets.cells[image, index][valid].tolist()
            found = {(c // (rows * columns), c // columns % rows, c % columns) for c in cells}
            wanted = matches(boxes[image, index, 1:].tolist(), ANCHORS[level], rows, columns, stride)
            assert found == wanted and len(cells) == len(found)
            for cell, box in zip(cells, targets.boxes[image, index][valid].tolist(), strict=True):
                corner = (cell % columns, cell // columns % rows)
                whole = [box[0] + corner[0], box[1] + corner[1], box[2], box[3]]
                shares = boxes[image, index, 1:] * torch.tensor([columns, rows, columns, rows])
                assert whole == pytest.approx(shares.tolist(), abs=1e-4)
                assert -0.5 <= min(box[:2]) and max(box[:2]) <= 1.5  # what a cell can predict


def loss_in_loops(maps: YOLOv5Maps, boxes: Tensor, counts: Tensor) -> list[float]:
    """Box, objectness and class loss, each mean by map, summed over the maps."""
    total = [0.0, 0.0, 0.0]
    for raw, anchors, stride, balance in zip(maps, ANCHORS, STRIDES, MAP_BALANCE, strict=True):
        batch, _, rows, columns, _ = raw.shape
        box_losses, class_losses, wanted = [], [], torch.zeros(raw.shape[:-1])
        for image in range(batch):
            for row in boxes[image, : int(counts[image])]:
                target = (row[1:] * torch.tensor([columns, rows, columns, rows])).tolist()
                for anchor, y, x in matches(row[1:].tolist(), anchors, rows, columns, stride):
                    cell = raw[image, anchor, y, x]
                    s = cell.sigmoid().tolist()
                    sides = [(2 * s[2 + i]) ** 2 * anchors[anchor][i] / stride for i in range(2)]
                    mine = torch.tensor([2 * s[0] - 0.5 + x, 2 * s[1] - 0.5 + y, *sides]).double()
                    ends = cxcywh_to_xyxy(torch.stack((mine, torch.tensor(target).double()))).tolist()
                    ciou = ciou_formula(ends[0], ends[1])[0]
                    box_losses.append(1 - ciou)
                    wanted[image, anchor, y, x] = max(float(wanted[image, anchor, y, x]), ciou)
                    one_hot = F.one_hot(row[0].long(), raw.shape[-1] - 5).float()
                    class_losses.append(float(F.binary_cross_entropy_with_logits(cell[5:], one_hot)))
        total[0] += sum(box_losses) / max(len(box_losses), 1)
        total[1] += balance * float(F.binary_cross_entropy_with_logits(raw[..., 4], wanted))
        total[2] += sum(class_losses) / max(len(class_losses), 1)
    return total


def test_the_loss_is_that_of_the_loop() -> None:
    boxes, counts = some_boxes()
    maps = YOLOv5Maps(*(torch.randn(3, 2, 64 // stride, 96 // stride, 7) for stride in STRIDES))
    loss = detection_loss(maps, boxes, counts, ANCHORS, STRIDES, Gains(1, 1, 1))
    wanted = loss_in_loops(maps, boxes, counts)
    found = [float(loss.box), float(loss.objectness) * 640**2 / (64 * 96), float(loss.classes) * 80 / 2]
    assert found == pytest.approx(wanted, rel=1e-4)
    shuffled = boxes.clone()
    shuffled[2, :4] = boxes[2, [2, 0, 3, 1]]
    again = detection_loss(maps, shuffled, counts, ANCHORS, STRIDES, Gains(1, 1, 1))
    torch.testing.assert_close(torch.stack(again), torch.stack(loss))


def test_images_without_boxes_learn_that_nothing_is_there() -> None:
    model = toy().train()
    task, pixels = Detection(), torch.rand(2, 3, 64, 64)
    for rows in (0, 3):
        batch = {"pixel_values": pixels, "boxes": torch.zeros(2, rows, 5), "counts": torch.zeros(2, dtype=torch.int64)}
        parts = task.parts(model, batch)
        assert float(parts.box.detach()) == float(parts.classes.detach()) == 0 and bool(parts.total.isfinite())
        parts.total.backward()


def test_the_loss_is_followed_without_a_break_and_needs_no_device() -> None:
    """Dynamo's `eager` backend: the graph is captured whole. On `meta`: no step looks at values."""
    model, task = toy().train(), Detection()
    boxes, counts = some_boxes()
    batch = {"pixel_values": torch.rand(3, 3, 64, 64), "boxes": boxes, "counts": counts}
    plain = task.loss(model, batch)
    assert plain.count == task.count(batch) == 3
    captured = torch.compile(task.loss_sum, fullgraph=True, backend="eager")(model, batch)
    torch.testing.assert_close(captured, plain.sum)
    on_meta = task.loss_sum(toy().to("meta"), {name: value.to("meta") for name, value in batch.items()})
    assert on_meta.shape == ()


def test_wrong_inputs_are_refused() -> None:
    model = toy()
    with pytest.raises(ModelError, match="nearest that fits: 64 x 96"):
        model(torch.rand(1, 3, 70, 100))
    with pytest.raises(ModelError, match="nearest that fits: 32 x 32"):
        model(torch.rand(1, 3, 1, 8))
    with pytest.raises(ModelError, match="pixel_values"):
        model(torch.rand(1, 1, 64, 64))
    batch = {"pixel_values": torch.rand(2, 3, 64, 64), "boxes": torch.rand(2, 1, 5), "counts": torch.tensor([0, 1])}
    batch["boxes"][:, 0, 0] = 2
    with pytest.raises(ModelError, match="0 to 1"):
        Detection().loss_sum(model, batch)
    with pytest.raises(ModelError, match="counts"):
        Detection().loss_sum(model, {**batch, "counts": torch.tensor([1])})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"anchors": [[[8, 8]], [[8, 8]], []]}, r"nearest that fits: 1 for each"),
        ({"anchors": [[[8, 8]], [[8, 8]], [[8]]]}, "no width and height"),
        ({"anchors": [[[8, 8]], [[8, 8]], [[8, -1]]]}, "above 0"),
        ({"anchors": [[[8, 8]]]}, "at least 3"),
        ({"width": 0.5}, "did you mean 'width_multiple'"),
    ],
)
def test_sizes_that_make_no_model_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        YOLOv5Config(**values)


def test_a_fresh_model_expects_few_objects() -> None:
    model = toy(num_labels=10).eval()
    with torch.no_grad():
        scores = model.decode(model(torch.rand(1, 3, 128, 128))).scores
    assert float(scores.max()) < 0.02


def test_predictions_are_the_candidates_after_suppression_and_best_first() -> None:
    class Fixed(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return pixel_values

        def decode(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
            boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [40, 40, 90, 50], [20, 20, 24, 24]])
            scores = torch.tensor([[0.6, 0.0], [0.7, 0.3], [0.0, 0.9], [0.1, 0.2]])
            return boxes.expand(2, 4, 4), scores.expand(2, 4, 2)

    first, second = Detection().predict(Fixed(), torch.zeros(2, 3, 64, 64))
    assert first.scores.tolist() == pytest.approx([0.9, 0.7, 0.3]) and first.labels.tolist() == [1, 0, 1]
    assert first.boxes[0].tolist() == [40, 40, 64, 50] and torch.equal(first.boxes, second.boxes)
    some = Detection(max_detections=2).predict(Fixed(), torch.zeros(2, 3, 64, 64))[0]
    assert some.scores.tolist() == pytest.approx([0.9, 0.7])
    few = Detection(max_candidates=1).predict(Fixed(), torch.zeros(2, 3, 64, 64))[0]
    assert few.scores.tolist() == pytest.approx([0.9])


def scene() -> dict[str, Tensor]:
    """One image of 64 x 64: a red, a green and a large red rectangle."""
    pixels, boxes = torch.full((1, 3, 64, 64), 0.2), []
    for label, left, top, right, bottom in [(0, 4, 6, 16, 20), (1, 40, 8, 60, 22), (0, 10, 30, 50, 60)]:
        pixels[0, label, top:bottom, left:right] = 0.9
        boxes.append([label, (left + right) / 128, (top + bottom) / 128, (right - left) / 64, (bottom - top) / 64])
    return {"pixel_values": pixels, "boxes": torch.tensor([boxes]), "counts": torch.tensor([3])}


def test_a_small_model_learns_an_image_by_heart() -> None:
    model, batch = toy(width_multiple=0.06).train(), scene()
    task = Detection(gains=Gains(box=1.0, objectness=20.0, classes=20.0), min_score=0.001)
    assert evaluate_detection(model, [batch], 2, task).map50 < 0.5 and model.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(200):
        if step == 60:
            model.eval()  # one image's own statistics are not the running ones: from here on those of inference
        optimizer.zero_grad()
        task.loss_sum(model, batch).backward()
        optimizer.step()
    scores = evaluate_detection(model, [batch], 2, task)
    assert scores.map50 > 0.9 and not model.training, scores
    found = Detection(min_score=0.5).predict(model, batch["pixel_values"])[0]
    assert sorted(found.labels.tolist()) == [0, 0, 1]
