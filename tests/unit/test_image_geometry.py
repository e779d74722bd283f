"""Geometry of images: sizes against Pillow, boxes against moved corners and painted masks, flips undone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek.data.image import (
    CenterCrop,
    HorizontalFlip,
    Letterbox,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    VerticalFlip,
    affine_matrix,
    clip_and_select,
    crop_image,
    letterbox_image,
    move_boxes,
    random_part,
    resize_image,
    warp_affine,
    warp_affine_nearest,
)
from deepseek.data.image.affine import invert
from deepseek.data.pipeline import Pipeline, SampleStage
from deepseek.errors import ConfigError, DataError
from deepseek.nn import letterbox as nn_letterbox

STAGES: list[SampleStage] = [
    Resize(size=(13, 29)),
    Resize(size=16, keep_aspect=True, interpolation="bicubic"),
    Letterbox(size=(32, 24)),
    CenterCrop(size=(20, 12)),
    CenterCrop(size=(70, 60)),
    RandomCrop(size=(15, 18), padding=4),
    RandomResizedCrop(size=(24, 20)),
    HorizontalFlip(p=1.0),
    VerticalFlip(p=1.0),
    RandomAffine(degrees=40.0, shear=20.0, translate=(0.2, 0.1), scale=(0.6, 1.5)),
]
SHAPES = [(37, 50), (50, 37), (1, 1), (1, 9), (8, 1), (33, 33)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8))


def smooth_image(height: int, width: int) -> Tensor:
    y, x = np.mgrid[0:height, 0:width]
    planes = (127 + 120 * np.sin(x / 7), 127 + 120 * np.cos(y / 5), (x + y) * 255 / (height + width))
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


def sample_of(height: int, width: int, seed: int = 0) -> dict[str, Any]:
    corner = torch.from_numpy(rng(seed).random((5, 2))) * torch.tensor([width, height])
    far = torch.minimum(
        corner + 0.5 + torch.from_numpy(rng(seed + 1).random((5, 2))) * 20, torch.tensor([width, height])
    )
    return {
        "image": random_image(height, width, seed=seed),
        "mask": torch.from_numpy(rng(seed).integers(0, 5, (height, width))),
        "boxes": torch.cat((corner, torch.maximum(far, corner)), dim=1).float(),
        "box_labels": torch.arange(5),
        "label": 3,
    }


def painted(box: Tensor, height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.int64)
    x1, y1, x2, y2 = (int(value) for value in box)
    mask[y1:y2, x1:x2] = 1
    return mask


def extent(mask: Tensor) -> list[int]:
    """Return the upright box around all pixels that are set."""
    y, x = mask.nonzero().unbind(-1)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_stage_keeps_image_mask_and_boxes_together(stage: SampleStage, shape: tuple[int, int]) -> None:
    sample = sample_of(*shape)
    kept = {key: value.clone() for key, value in sample.items() if isinstance(value, Tensor)}
    found = stage.apply(sample, rng())
    assert all(torch.equal(sample[key], value) for key, value in kept.items())  # nothing is changed in place
    height, width = found["image"].shape[1:]
    assert found["image"].dtype == torch.uint8 and found["mask"].dtype == torch.int64
    assert found["mask"].shape == (height, width)
    boxes = found["boxes"]
    assert boxes.dtype == torch.float32 and len(boxes) == len(found["box_labels"])
    assert (boxes >= -1e-3).all() and (boxes[:, 0::2] <= width + 1e-3).all() and (boxes[:, 1::2] <= height + 1e-3).all()
    assert found["label"] == 3
    for key in ("mask", "boxes", "box_labels"):
        sample.pop(key)
    alone = stage.apply(sample, rng())
    assert torch.equal(alone["image"], found["image"]) and set(alone) == {"image", "label"}
    as_float = stage.apply({"image": sample["image"].float() / 255}, rng())["image"]
    assert as_float.dtype == torch.float32 and as_float.shape == found["image"].shape
    if getattr(stage, "interpolation", "") != "bicubic":  # which overshoots in float
        assert (as_float * 255 - found["image"].float()).abs().max() <= 1.01


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_every_stage_becomes_yaml_and_comes_back(stage: SampleStage) -> None:
    again = Pipeline.from_config(Pipeline([stage]).to_config())
    assert again.written == (stage,)


@pytest.mark.parametrize("stage", [*STAGES[3:7], STAGES[9]], ids=repr)
@pytest.mark.parametrize("seed", range(8))
def test_a_mask_painted_from_the_box_goes_where_the_box_goes(stage: SampleStage, seed: int) -> None:
    height, width = 61, 54
    box = torch.tensor([[14.0, 11.0, 39.0, 44.0]])
    sample = {"image": random_image(height, width), "mask": painted(box[0], height, width), "boxes": box}
    found = stage.apply(sample, rng(seed))
    if not len(found["boxes"]):
        assert found["mask"].sum() < 200
        return
    assert found["boxes"][0].tolist() == pytest.approx(extent(found["mask"]), abs=1.6)


@pytest.mark.parametrize("stage", [Resize(size=(40, 90)), Letterbox(size=(80, 64)), *STAGES[7:9]], ids=repr)
def test_whole_boxes_stay_on_their_pixels(stage: SampleStage) -> None:
    box = torch.tensor([[14.0, 11.0, 39.0, 44.0]])
    found = stage.apply({"image": random_image(61, 54), "mask": painted(box[0], 61, 54), "boxes": box}, rng())
    assert found["boxes"][0].tolist() == pytest.approx(extent(found["mask"]), abs=1.0)


floats = st.floats(-40, 40, allow_nan=False)


@given(st.tuples(*[floats] * 6), st.lists(st.tuples(floats, floats, floats, floats), max_size=4))
@settings(max_examples=150, deadline=None)
def test_boxes_are_the_hull_of_their_moved_corners(
    numbers: tuple[float, ...], corners: list[tuple[float, ...]]
) -> None:
    matrix = (numbers[:3], numbers[3:])
    boxes = torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)
    boxes = torch.cat((torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    found = move_boxes(boxes, matrix)  # type: ignore[arg-type]
    for (x1, y1, x2, y2), new in zip(boxes.tolist(), found.tolist(), strict=True):
        points = np.array([[x1, y1, 1], [x2, y1, 1], [x2, y2, 1], [x1, y2, 1]]) @ np.array(matrix).T
        assert new == pytest.approx([*points.min(axis=0), *points.max(axis=0)], abs=1e-9)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_second_flip_undoes_the_first(height: int, width: int, seed: int) -> None:
    sample = sample_of(height, width, seed)
    for stage in (HorizontalFlip(p=1.0), VerticalFlip(p=1.0)):
        once = stage.apply(sample, rng())
        again = stage.apply(once, rng())
        assert torch.equal(again["image"], sample["image"]) and torch.equal(again["mask"], sample["mask"])
        torch.testing.assert_close(again["boxes"], sample["boxes"])
        assert (once["boxes"][:, 2:] >= once["boxes"][:, :2]).all()


def test_flips_exchange_the_named_sides_in_volumes_too() -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(HorizontalFlip(p=1.0).apply({"image": image}, rng())["image"], image[..., [3, 2, 1, 0]])
    assert torch.equal(VerticalFlip(p=1.0).apply({"image": image}, rng())["image"], image[..., [2, 1, 0], :])


def test_p_is_how_often_a_stage_acts() -> None:
    image = torch.arange(2.0).reshape(1, 1, 2)
    source = rng()
    acted = [HorizontalFlip(p=0.3).apply({"image": image}, source)["image"][0, 0, 0].item() for _ in range(2000)]
    assert np.mean(acted) == pytest.approx(0.3, abs=0.04)
    for never in (HorizontalFlip(p=0.0), VerticalFlip(p=0.0), RandomAffine(p=0.0)):
        assert torch.equal(never.apply({"image": image}, source)["image"], image)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("new", [(20, 31), (100, 90), (57, 20), (3, 100), (1, 1), (20, 1), (1, 20), (90, 1)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_resize_agrees_with_pillow(method: Any, new: tuple[int, int], interleaved: bool) -> None:
    Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = random_image(57, 83)
    if interleaved:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wanted = np.array(
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(
            new[::-1], getattr(Image.Resampling, method.upper())
        )
    )
    found = resize_image(image, new, method).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= {"nearest": 0, "bilinear": 1, "bicubic": 2}[method]


def test_resize_is_batched_and_keeps_dtypes() -> None:
    images = torch.stack([random_image(9, 14, seed=seed) for seed in range(6)]).reshape(2, 3, 3, 9, 14)
    found = resize_image(images, (5, 20))
    assert found.shape == (2, 3, 3, 5, 20) and torch.equal(found[1, 2], resize_image(images[1, 2], (5, 20)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        scaled = resize_image(images.to(dtype) / 255, (5, 20))
        assert scaled.dtype == dtype
        assert (scaled.float() * 255 - found.float()).abs().max() < (1.1 if dtype != torch.bfloat16 else 2.5)
    assert resize_image(images, (9, 14)) is images


def test_volumes_are_resized_axis_by_axis() -> None:
    volume = torch.rand(2, 6, 10, 12)
    found = resize_image(volume, (3, 20, 6))
    wanted = torch.stack([resize_image(one[:, None], (20, 6))[:, 0] for one in volume])
    wanted = torch.stack([resize_image(one[None], (3, 20))[0] for one in wanted.permute(0, 3, 1, 2).flatten(0, 1)])
    torch.testing.assert_close(found, wanted.reshape(2, 6, 3, 20).permute(0, 2, 3, 1), atol=1e-6, rtol=0)
    sample = {"image": volume, "mask": torch.randint(0, 4, (6, 10, 12))}
    assert Resize(size=(3, 5, 5)).apply(sample, rng())["mask"].shape == (3, 5, 5)
    constant = resize_image(torch.full((1, 4, 5, 6), 7, dtype=torch.uint8), (9, 2, 3))
    assert constant.shape == (1, 9, 2, 3) and (constant == 7).all()


def test_keep_aspect_covers_the_size() -> None:
    found = Resize(size=(20, 30), keep_aspect=True).apply({"image": random_image(50, 100)}, rng())["image"]
    assert found.shape == (3, 20, 40)
    assert Resize(size=10, keep_aspect=True).apply({"image": random_image(7, 5)}, rng())["image"].shape == (3, 14, 10)
    with pytest.raises(DataError, match="too long"):
        Resize(size=224, keep_aspect=True).apply({"image": torch.zeros(1, 1, 60_000)}, rng())


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_letterbox_is_the_one_of_the_models(height: int, width: int, new_height: int, new_width: int) -> None:
    image = torch.rand(3, height, width)
    found, place = letterbox_image(image, (new_height, new_width))
    wanted, there = nn_letterbox.letterbox(image, (new_height, new_width))
    assert place == there
    if round(width * place.scale_x) > 1:  # torch's own scaling is wrong where the result is one pixel wide
        torch.testing.assert_close(found, wanted)
    sample = Letterbox(size=(new_height, new_width)).apply(sample_of(height, width), rng())
    torch.testing.assert_close(sample["boxes"], nn_letterbox.letterbox_boxes(sample_of(height, width)["boxes"], place))


def test_letterbox_bars() -> None:
    sample = {"image": random_image(10, 20), "mask": torch.ones(10, 20, dtype=torch.int64)}
    found = Letterbox(size=20, fill=7, mask_fill=255).apply(sample, rng())
    assert (found["image"][:, :5] == 7).all() and (found["image"][:, 15:] == 7).all()
    assert torch.equal(found["image"][:, 5:15], sample["image"])
    assert found["mask"][:, 0].tolist() == [255] * 5 + [1] * 10 + [255] * 5


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-12, 12),
    st.integers(-12, 12),
    st.integers(1, 9),
    st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_crop_is_a_window_on_a_filled_plane(h: int, w: int, top: int, left: int, height: int, width: int) -> None:
    values = torch.arange(h * w).reshape(h, w)
    plane = torch.full((60, 60), -5)
    plane[20 : 20 + h, 20 : 20 + w] = values
    found = crop_image(values, (top, left), (height, width), -5)
    assert torch.equal(found, plane[20 + top : 20 + top + height, 20 + left : 20 + left + width])


def test_crops_of_volumes() -> None:
    volume = torch.rand(2, 9, 8, 7)
    sample = {"image": volume, "mask": torch.arange(9 * 8 * 7).reshape(9, 8, 7)}
    assert torch.equal(CenterCrop(size=(3, 4, 5)).apply(sample, rng())["image"], volume[:, 3:6, 2:6, 1:6])
    part = RandomCrop(size=4).apply(sample, rng())
    z, y, x = np.unravel_index(int(part["mask"][0, 0, 0]), (9, 8, 7))
    assert torch.equal(part["image"], volume[:, z : z + 4, y : y + 4, x : x + 4])


def test_random_crops_reach_every_place_alike() -> None:
    sample = {"image": torch.zeros(1, 6, 4), "mask": torch.arange(24).reshape(6, 4)}
    source = rng()
    tops = [int(RandomCrop(size=(4, 4)).apply(sample, source)["mask"][0, 0]) // 4 for _ in range(900)]
    assert np.bincount(tops, minlength=3) == pytest.approx([300] * 3, abs=60)
    padded = [
        int(RandomCrop(size=(6, 4), padding=(2, 0), mask_fill=-1).apply(sample, source)["mask"][0, 0])
        for _ in range(200)
    ]
    assert set(padded) == {-1, 0, 4, 8}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_random_parts_lie_inside(height: int, width: int, seed: int) -> None:
    (top, left), (h, w) = random_part(height, width, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


def test_random_parts_have_the_wanted_area_and_shape() -> None:
    source = rng()
    parts = np.array([random_part(2000, 2000, (0.1, 0.5), (0.5, 2.0), source)[1] for _ in range(3000)])
    area = parts.prod(axis=1) / 4e6
    assert area.min() >= 0.099 and area.max() <= 0.501 and area.mean() == pytest.approx(0.3, abs=0.01)
    ratio = np.log2(parts[:, 1] / parts[:, 0])
    assert ratio.mean() == pytest.approx(0, abs=0.03) and ratio.std() == pytest.approx(2 / math.sqrt(12), abs=0.03)


def test_boxes_with_too_little_left_are_dropped_with_their_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [9, 9, 19, 19], [9.5, 0, 19.5, 10], [3, 3, 3, 8], [40, 40, 50, 50]])
    sample = {"image": random_image(60, 60), "boxes": boxes, "box_labels": torch.tensor([7, 8, 9, 10, 11])}

    found = RandomCrop(size=10, min_visible=0.1).apply({**sample, "image": sample["image"][:, :10, :10]}, rng())
    assert found["box_labels"].tolist() == [7] and found["boxes"].tolist() == [[0, 0, 10, 10]]
    clipped, kept = clip_and_select(boxes, 10, 10, 0.05)
    assert kept.tolist() == [True, False, True, False, False] and clipped[2].tolist() == [9.5, 0, 10, 10]
    assert clip_and_select(boxes, 10, 10, 0.0)[1].tolist() == [True, True, True, False, False]


def test_quarter_turns_are_exact_and_counter_clockwise() -> None:
    image = random_image(12, 12)
    for quarters in range(1, 4):
        matrix = affine_matrix(12, 12, degrees=90.0 * quarters)
        assert torch.equal(warp_affine(image, matrix), torch.rot90(image, quarters, (-2, -1)))
        assert torch.equal(warp_affine_nearest(image, matrix), torch.rot90(image, quarters, (-2, -1)))


def test_moves_by_whole_pixels_are_crops() -> None:
    image = random_image(15, 22)
    found = warp_affine(image, affine_matrix(15, 22, translate=(3.0, -4.0)), fill=9)
    assert torch.equal(found, crop_image(image, (4, -3), (15, 22), 9))
    mask = warp_affine_nearest(image.long(), affine_matrix(15, 22, translate=(3.0, -4.0)), fill=-1)
    assert torch.equal(mask, crop_image(image.long(), (4, -3), (15, 22), -1))


@pytest.mark.parametrize("threads", [1, 2])
def test_warp_is_bilinear_at_the_place_each_pixel_comes_from(threads: int) -> None:
    image = smooth_image(132, 90)
    matrix = affine_matrix(132, 90, 25.0, (4.5, -7.25), 1.3, 12.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = warp_affine(image, matrix, fill=100.0)
        as_float = warp_affine(image.double() / 255, matrix, fill=100.0)
    finally:
        torch.set_num_threads(before)
    back = np.array(invert(matrix))
    framed = np.pad(image.numpy().astype(float), ((0, 0), (99, 99), (99, 99)), constant_values=100.0)
    for y, x in rng().integers(0, (132, 90), (400, 2)):
        px, py = back @ [x + 0.5, y + 0.5, 1.0] - 0.5
        left, top = math.floor(px), math.floor(py)
        if not (-50 < left < 130 and -50 < top < 180):
            continue
        four = framed[:, top + 99 : top + 101, left + 99 : left + 101]
        wanted = four[:, 0] * (1 - (py - top)) + four[:, 1] * (py - top)
        wanted = wanted[:, 0] * (1 - (px - left)) + wanted[:, 1] * (px - left)
        assert found[:, y, x].tolist() == pytest.approx(wanted, abs=0.51)
        assert as_float[:, y, x].tolist() == pytest.approx(wanted / 255, abs=1e-4)


def test_a_map_and_its_inverse_give_the_image_back() -> None:
    image = smooth_image(80, 100).float() / 255
    matrix = affine_matrix(80, 100, 17.0, (2.0, 1.0), 1.1, 5.0)
    again = warp_affine(warp_affine(image, matrix), invert(matrix))
    assert (again - image)[:, 25:55, 25:75].abs().max() < 0.02


def test_each_image_of_a_batch_may_have_its_own_map() -> None:
    images = torch.stack([random_image(20, 30, seed=seed) for seed in range(3)])
    maps = [affine_matrix(20, 30, degrees) for degrees in (0.0, 10.0, -50.0)]
    found = warp_affine(images, maps, fill=3)
    for image, matrix, one in zip(images, maps, found, strict=True):
        assert torch.equal(one, warp_affine(image, matrix, fill=3))
    assert torch.equal(warp_affine(images, maps[1])[2], warp_affine(images[2], maps[1]))
    with pytest.raises(ConfigError, match="one matrix"):
        warp_affine(images, maps[:2])


def test_maps_without_inverse_are_refused() -> None:
    for wrong in (((1.0, 2.0, 0.0), (2.0, 4.0, 0.0)), ((math.nan, 0.0, 0.0), (0.0, 1.0, 0.0))):
        with pytest.raises(ConfigError, match="undone"):
            warp_affine(random_image(4, 4), wrong)


def test_masks_keep_classes_past_what_float32_holds() -> None:
    mask = torch.full((6, 6), 2**24 + 1)
    assert warp_affine_nearest(mask, affine_matrix(6, 6, 45.0)).unique().tolist() == [0, 2**24 + 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(size=0),
        lambda: Resize(size=(1, 2, 3, 4)),
        lambda: Resize(size=10**9),
        lambda: Resize(size=2.5),  # type: ignore[arg-type]
        lambda: Resize(interpolation="lanczos"),  # type: ignore[arg-type]
        lambda: Letterbox(fill=300),
        lambda: CenterCrop(min_visible=1.5),
        lambda: RandomCrop(padding=-1),
        lambda: RandomResizedCrop(scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(ratio=(0.0, 1.0)),
        lambda: HorizontalFlip(p=1.1),
        lambda: RandomAffine(degrees=-1),
        lambda: RandomAffine(scale=(0.0, 1.0)),
        lambda: RandomAffine(translate=(0.1, math.nan)),
    ],
)
def test_wrong_settings_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_samples_of_another_form_are_refused(stage: SampleStage) -> None:
    image = random_image(9, 9)
    boxes = torch.zeros(2, 4)
    wrong: list[dict[str, Any]] = [
        {"image": image.numpy()},
        {"image": image.int()},
        {"image": image[0]},
        {"image": image[:, :0]},
        {"image": image[None, None]},
        {"image": image, "mask": torch.zeros(9, 8)},
        {"image": image, "boxes": boxes[:, :3]},
        {"image": image, "boxes": boxes.long()},
        {"image": image, "boxes": boxes, "box_labels": torch.zeros(3)},
    ]
    for sample in wrong:
        with pytest.raises(DataError):
            stage.apply(sample, rng())


def test_a_size_of_another_number_of_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="number of sides"):
        Resize(size=(4, 4, 4)).apply({"image": random_image(9, 9)}, rng())
