"""Random erasing, MixUp, CutMix and Mosaic: shares that sum to 1, areas that are exact, boxes that follow."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.image.erase import RandomErasing, erase, random_rectangle
from deepseek.data.image.mix import CutMix, MixUp, blend, cut_window, label_shares, paste
from deepseek.data.image.mosaic import Mosaic, tiles
from deepseek.data.pipeline import Pipeline, Sample
from deepseek.errors import ConfigError, DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain(count: int = 4, space: tuple[int, ...] = (12, 14), **more: Any) -> list[Sample]:
    """Return samples whose pixels are all their own number, which is their class as well."""
    return [{"pixel_values": torch.full((3, *space), float(i)), "label": i, "index": i, **more} for i in range(count)]


class TestErasing:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
    def test_one_rectangle_changes_and_nothing_else(self, height: int, width: int, seed: int) -> None:
        pixels = torch.zeros(3, height, width)
        erased = RandomErasing(p=1.0, value=7.0).apply({"pixel_values": pixels}, rng(seed))["pixel_values"]
        rows, columns = (erased[0] == 7).nonzero(as_tuple=True)
        assert bool((pixels == 0).all())
        if len(rows):
            height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
            assert int((erased == 7).sum()) == 3 * height * width == 3 * len(rows)
        assert set(erased.unique().tolist()) <= {0.0, 7.0}

    def test_rectangles_have_the_area_and_shape_asked_for(self) -> None:
        found = [random_rectangle((400, 300), (0.1, 0.2), (0.5, 2.0), rng(seed)) for seed in range(300)]
        areas = [one[2] * one[3] / 120_000 for one in found if one]
        ratios = [one[2] / one[3] for one in found if one]
        assert len(areas) == 300
        assert 0.098 < min(areas) < 0.11 < 0.19 < max(areas) < 0.202
        assert 0.49 < min(ratios) < 0.55 < 1.9 < max(ratios) < 2.02
        assert abs(np.mean(np.log(ratios))) < 0.1

    def test_noise_has_the_spread_of_normalised_pixels(self) -> None:
        stage = RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(1.0, 1.0))
        erased = stage.apply({"pixel_values": torch.full((3, 100, 100), 50.0)}, rng())["pixel_values"]
        noise = erased[erased != 50]
        assert noise.numel() == 3 * 71**2
        assert float(noise.mean()) == pytest.approx(0, abs=0.05)
        assert float(noise.std()) == pytest.approx(1, abs=0.05)

    def test_happens_as_often_as_asked(self) -> None:
        sample = {"pixel_values": torch.zeros(1, 32, 32)}
        count = sum(bool(RandomErasing(0.3).apply(sample, rng(i))["pixel_values"].any()) for i in range(400))
        assert count == pytest.approx(120, abs=40)

    def test_bad_input(self) -> None:
        with pytest.raises(DataError, match="can't be erased"):
            RandomErasing().apply({"pixel_values": torch.zeros(3, 4, 4, 4)}, rng())
        with pytest.raises(DataError, match="inside"):
            erase(torch.zeros(3, 8, 8), (4, 4, 5, 2))
        for wrong in ({"p": -1}, {"scale": (0.5, 0.1)}, {"ratio": (0.0, 1.0)}, {"value": "black"}, {"value": math.nan}):
            with pytest.raises(ConfigError):
                RandomErasing(**wrong)


class TestMixUp:
    def test_pixels_and_labels_have_the_same_shares(self) -> None:
        for sample in MixUp(4, 0.4).apply_batch(plain(), rng(1)):
            numbers = torch.arange(4.0)
            assert float(sample["label"].sum()) == pytest.approx(1, abs=1e-6)
            assert torch.allclose(sample["pixel_values"], (sample["label"] * numbers).sum(), atol=1e-5)
            assert float(sample["label"][sample["index"]]) > 0

    def test_weights_are_of_the_beta_distribution(self) -> None:
        mixed = [one for seed in range(300) for one in MixUp(8, 0.5).apply_batch(plain(8, (1, 1)), rng(seed))]
        weights = np.array([float(one["label"][one["index"]]) for one in mixed])
        weights = weights[weights < 1 - 1e-6]  # partners of themselves
        assert weights.mean() == pytest.approx(0.5, abs=0.03)
        assert weights.var() == pytest.approx(1 / 8, abs=0.01)  # of Beta(a, a): 1 / (4 (2a + 1))

    def test_a_batch_of_one_and_p_0_only_make_shares(self) -> None:
        alone = MixUp(3, 1.0).apply_batch(plain(1), rng())[0]
        assert alone["label"].tolist() == [1, 0, 0]
        for one, before in zip(MixUp(4, 1.0, p=0.0).apply_batch(plain(), rng()), plain(), strict=True):
            assert torch.equal(one["pixel_values"], before["pixel_values"])
            assert one["label"].tolist() == [float(i == before["label"]) for i in range(4)]

    def test_blend_takes_a_weight_for_each(self) -> None:
        found = blend(torch.ones(3, 2, 2), torch.zeros(3, 2, 2), torch.tensor([0.0, 0.25, 1.0]))
        assert found[:, 0, 0].tolist() == [0.0, 0.25, 1.0]

    def test_bad_input(self) -> None:
        other = plain(1, (12, 15))[0]
        with pytest.raises(DataError, match="one shape"):
            MixUp(4, 1.0).apply_batch([*plain(2), other], rng())
        with pytest.raises(DataError, match="no class"):
            MixUp(3, 1.0).apply_batch(plain(4), rng())
        with pytest.raises(DataError, match="mask"):
            MixUp(4, 1.0).apply_batch(plain(mask=torch.zeros(12, 14)), rng())
        with pytest.raises(DataError, match="'label'"):
            MixUp(4, 1.0).apply_batch([{"pixel_values": torch.zeros(1, 2, 2)}], rng())
        with pytest.raises(DataError, match="form"):
            label_shares(torch.zeros(3), 4)
        for alpha, labels, p in ((0.0, 2, 1.0), (1.0, 0, 1.0), (1.0, 2, 1.5), (math.inf, 2, 1.0)):
            with pytest.raises(ConfigError):
                MixUp(labels, alpha, p)


class TestCutMix:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 40), min_size=2, max_size=3), st.floats(0, 1), st.integers(0, 999))
    def test_the_share_is_the_area_left(self, space: list[int], share: float, seed: int) -> None:
        window, left = cut_window(space, share, rng(seed))
        pasted = paste(torch.zeros(*space), torch.ones(*space), window)
        assert left == pytest.approx(float((pasted == 0).double().mean()), abs=1e-12)

    def test_labels_follow_the_pixels_exactly(self) -> None:
        cut = 0
        for seed in range(20):
            masks = [{**one, "mask": torch.full((12, 14), one["index"])} for one in plain()]
            for sample in CutMix(4, 1.0).apply_batch(masks, rng(seed)):
                seen = torch.bincount(sample["pixel_values"][0].long().flatten(), minlength=4) / (12 * 14)
                assert torch.allclose(sample["label"], seen, atol=1e-6)
                assert torch.equal(sample["pixel_values"][0].long(), sample["mask"])
                cut += int((seen > 0).sum() > 1)
        assert cut > 30

    def test_without_clipping_the_window_has_the_share_drawn(self) -> None:
        """The mean share left is above the one drawn only by what the edges cut off."""
        left = [cut_window((1000, 1000), 0.99, rng(seed))[1] for seed in range(200)]
        assert np.mean(left) == pytest.approx(0.99, abs=0.001)

    def test_chains_with_mixup_in_a_pipeline(self) -> None:
        pipeline = Pipeline([MixUp(4, 0.4, p=0.5), CutMix(4, 1.0, p=0.5)], seed=5)
        batch = pipeline(plain())
        assert batch["labels"].shape == (4, 4)
        assert torch.allclose(batch["labels"].sum(1), torch.ones(4))
        assert torch.allclose(batch["labels"] @ torch.arange(4.0), batch["pixel_values"].mean((1, 2, 3)), atol=1e-5)
        assert torch.equal(
            Pipeline.from_config(pipeline.to_config(), seed=5)(plain())["pixel_values"], batch["pixel_values"]
        )

    def test_nothing_is_changed_in_place(self) -> None:
        samples = plain()
        CutMix(4, 1.0).apply_batch(samples, rng(3))
        MixUp(4, 1.0).apply_batch(samples, rng(3))
        for one, before in zip(samples, plain(), strict=True):
            assert torch.equal(one["pixel_values"], before["pixel_values"])
            assert one["label"] == before["label"]

    def test_refuses_boxes(self) -> None:
        with pytest.raises(DataError, match="boxes"):
            CutMix(4, 1.0).apply_batch(plain(boxes=torch.zeros(0, 4)), rng())


def scene(index: int, size: tuple[int, int]) -> Sample:
    """Return a black image with one bright rectangle, its box, and a mask of it."""
    generator = rng(index)
    height, width = (int(generator.integers(side // 3, side // 2)) for side in size)
    top, left = (int(generator.integers(0, s - e)) for s, e in zip(size, (height, width), strict=True))
    image, mask = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(*size, dtype=torch.int64)
    image[:, top : top + height, left : left + width] = 255
    mask[top : top + height, left : left + width] = 1
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return {
        "image": image,
        "mask": mask,
        "boxes": box,
        "box_labels": torch.tensor([index]),
        "index": index,
        "path": str(index),
    }


class TestMosaic:
    SIZES = ((50, 70), (80, 40), (64, 64), (33, 91), (120, 100))

    def test_boxes_lie_on_what_they_marked(self) -> None:
        count = 0
        for seed in range(10):
            for place, one in enumerate(
                Mosaic((96, 128)).apply_batch([scene(i, s) for i, s in enumerate(self.SIZES)], rng(seed))
            ):
                assert one["image"].shape == (3, 96, 128)
                assert one["path"] == str(place)
                assert len(one["boxes"]) == len(one["box_labels"])
                painted = torch.zeros(96, 128)
                for x1, y1, x2, y2 in one["boxes"].tolist():
                    assert 0 <= x1 < x2 <= 128
                    assert 0 <= y1 < y2 <= 96
                    painted[round(y1) : round(y2), round(x1) : round(x2)] = 1
                    count += 1
                # all but pixels along the boxes' edges, and slivers of boxes that were dropped
                assert float((painted != one["mask"]).float().mean()) < 0.08
                assert float(((one["image"][0] > 127).long() != one["mask"]).float().mean()) < 0.02
        assert count > 120

    def test_tiles_cover_the_canvas_once_and_their_images_cover_them(self) -> None:
        for seed in range(50):
            centre = (int(rng(seed).integers(24, 73)), int(rng(seed + 1).integers(32, 97)))
            covered = torch.zeros(96, 128)
            for tile, (height, width) in zip(
                tiles(self.SIZES[:4], (96, 128), centre, rng(seed)), self.SIZES, strict=False
            ):
                covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
                assert 0 <= tile.row <= tile.scaled_height - tile.height
                assert 0 <= tile.column <= tile.scaled_width - tile.width
                assert tile.scaled_height / height == pytest.approx(tile.scaled_width / width, rel=0.05)
            assert bool((covered == 1).all())

    def test_every_sample_is_in_its_own_mosaic(self) -> None:
        samples = [scene(i, (40, 40)) for i in range(6)]
        for one in Mosaic(64, min_visible=0.0).apply_batch(samples, rng(2)):
            assert one["index"] in one["box_labels"].tolist() or len(one["box_labels"]) < 4

    def test_p_0_changes_nothing_and_a_batch_of_one_works(self) -> None:
        one = scene(0, (40, 40))
        assert Mosaic(64, p=0.0).apply_batch([one], rng())[0]["image"] is one["image"]
        assert Mosaic(64).apply_batch([one], rng())[0]["image"].shape == (3, 64, 64)

    def test_bad_input(self) -> None:
        one = scene(0, (40, 40))
        cases: list[tuple[list[Sample], str]] = [
            ([{**one, "label": 1}], "label"),
            ([{"image": one["image"]}], "boxes or a mask"),
            ([one, {key: value for key, value in one.items() if key != "mask"}], "no 'mask'"),
            ([one, {**one, "image": one["image"].float()}], "kind"),
            ([one, {**one, "image": one["image"][:1]}], "kind"),
            ([{**one, "boxes": torch.zeros(1, 5)}], "form"),
        ]
        for samples, message in cases:
            with pytest.raises(DataError, match=message):
                Mosaic(64).apply_batch(samples, rng())
        for wrong in (0, (64, 64, 64), 10**6, (64, 2)):
            with pytest.raises(ConfigError):
                Mosaic(wrong)  # type: ignore[arg-type]
