"""Windows of CT, random patches, and patches that slide over a volume and join again exactly."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.pipeline import Pipeline
from deepseek.data.volume import RandomPatch, Window, patch_corners, sliding_patches, stitch, window
from deepseek.errors import ConfigError, DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape of two or three axes and a patch that fits into it."""
    shape = draw(st.lists(st.integers(1, 14), min_size=2, max_size=3))
    return tuple(shape), tuple(draw(st.integers(1, side)) for side in shape)


class TestSliding:
    @settings(max_examples=80, deadline=None)
    @given(
        spaces(),
        st.floats(0, 0.9),
        st.sampled_from(["uniform", "gaussian"]),
        st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bfloat16]),
    )
    def test_patches_join_to_exactly_what_they_were(
        self, space: tuple[tuple[int, ...], tuple[int, ...]], overlap: float, weighting: str, dtype: torch.dtype
    ) -> None:
        shape, size = space
        volume = (torch.randn(2, *shape) * 100).abs().to(dtype)
        patches = list(sliding_patches(volume, size, overlap))
        assert all(patch.shape == (2, *size) for _, patch in patches)
        joined = stitch(patches, shape, weighting)  # type: ignore[arg-type]
        assert joined.dtype == dtype
        assert torch.equal(joined, volume)

    @settings(max_examples=60, deadline=None)
    @given(spaces(), st.floats(0, 0.9))
    def test_neighbours_overlap_by_the_share_asked_for(
        self, space: tuple[tuple[int, ...], tuple[int, ...]], overlap: float
    ) -> None:
        shape, size = space
        corners = patch_corners(shape, size, overlap)
        assert len(set(corners)) == len(corners)
        for axis, side in enumerate(size):
            starts = sorted({corner[axis] for corner in corners})
            assert starts[0] == 0
            assert starts[-1] == shape[axis] - side
            steps = np.diff(starts)
            assert all(side - step >= side * overlap - 1e-9 or step == 1 for step in steps)

    def test_where_patches_differ_their_mean_counts(self) -> None:
        patches = [((0, 0), torch.zeros(2, 4)), ((0, 2), torch.ones(2, 4))]
        assert stitch(iter(patches), (2, 6))[0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
        gaussian = stitch(patches, (2, 6), "gaussian")[0]
        assert 0 < float(gaussian[2]) < 0.5 < float(gaussian[3]) < 1

    def test_bad_input(self) -> None:
        with pytest.raises(DataError, match="don't cover"):
            stitch([((0, 0), torch.zeros(2, 2))], (2, 3))
        with pytest.raises(DataError, match="don't cover"):
            stitch([], (2, 3))
        with pytest.raises(DataError, match="outside"):
            stitch([((0, 2), torch.zeros(2, 2))], (2, 3))
        with pytest.raises(DataError, match="doesn't fit"):
            patch_corners((4, 4), (5, 4))
        with pytest.raises(DataError, match="doesn't fit"):
            patch_corners((4, 4), (0, 4))
        with pytest.raises(ConfigError, match="overlap"):
            patch_corners((4, 4), (2, 2), 1.0)
        with pytest.raises(ConfigError, match="weighting"):
            stitch([], (2, 3), "none")  # type: ignore[arg-type]


class TestRandomPatch:
    def test_image_and_mask_are_cut_alike(self) -> None:
        numbers = torch.arange(20 * 30 * 40).reshape(20, 30, 40)
        sample = {"image": numbers.float()[None], "mask": numbers}
        for seed in range(20):
            patch = RandomPatch((5, 6, 7)).apply(sample, rng(seed))
            assert patch["image"].shape == (1, 5, 6, 7)
            assert torch.equal(patch["image"][0].long(), patch["mask"])

    def test_foreground_is_as_frequent_as_asked(self) -> None:
        mask = torch.zeros(100, 100, dtype=torch.int64)
        mask[70, 20] = 3
        sample = {"image": torch.zeros(1, 100, 100), "mask": mask}
        hits = sum(bool(RandomPatch(10, 0.6).apply(sample, rng(seed))["mask"].any()) for seed in range(500))
        assert hits == pytest.approx(500 * (0.6 + 0.4 * 0.01), abs=55)

    def test_every_place_of_the_foreground_and_of_the_patch_has_its_turn(self) -> None:
        mask = torch.zeros(12, 12, dtype=torch.int64)
        mask[5, 5] = 1
        sample = {"image": torch.zeros(1, 12, 12), "mask": mask}
        places = Counter()
        for seed in range(600):
            places[tuple(RandomPatch(3, 1.0).apply(sample, rng(seed))["mask"].nonzero()[0].tolist())] += 1
        assert len(places) == 9
        assert min(places.values()) > 600 / 9 * 0.6

    def test_foreground_at_the_edges_is_held_too(self) -> None:
        for corner in ((0, 0), (0, 15), (15, 15)):
            mask = torch.zeros(16, 16, dtype=torch.int64)
            mask[corner] = 1
            for seed in range(20):
                assert bool(
                    RandomPatch(4, 1.0).apply({"image": torch.zeros(1, 16, 16), "mask": mask}, rng(seed))["mask"].any()
                )

    def test_an_empty_mask_or_none_gives_patches_from_anywhere(self) -> None:
        image = torch.arange(64.0).reshape(1, 8, 8)
        empty = {"image": image, "mask": torch.zeros(8, 8, dtype=torch.int64)}
        corners = {float(RandomPatch(6, 1.0).apply(empty, rng(seed))["image"][0, 0, 0]) for seed in range(100)}
        assert corners == {float(8 * y + x) for y in range(3) for x in range(3)}
        assert RandomPatch(6, 0.0).apply({"image": image}, rng())["image"].shape == (1, 6, 6)

    def test_bad_input(self) -> None:
        sample = {"image": torch.zeros(1, 8, 8), "mask": torch.zeros(8, 8, dtype=torch.int64)}
        with pytest.raises(DataError, match="doesn't fit"):
            RandomPatch(9).apply(sample, rng())
        with pytest.raises(DataError, match="needs a mask"):
            RandomPatch(4).apply({"image": sample["image"]}, rng())
        with pytest.raises(DataError, match="boxes"):
            RandomPatch(4).apply({**sample, "boxes": torch.zeros(0, 4)}, rng())
        with pytest.raises(DataError, match="size"):
            RandomPatch(4).apply({**sample, "mask": torch.zeros(8, 9)}, rng())
        for size, foreground in ((0, 0.5), ((4, 4, 4, 4), 0.5), (4, 1.5)):
            with pytest.raises(ConfigError):
                RandomPatch(size, foreground)


class TestWindow:
    @settings(max_examples=50, deadline=None)
    @given(st.floats(-2000, 2000), st.floats(0.5, 4000))
    def test_is_dicoms_linear_exact(self, level: float, width: float) -> None:
        values = torch.linspace(-3000, 3000, 301)
        for value, found in zip(values.tolist(), window(values, level, width).tolist(), strict=True):
            if value <= level - width / 2 - 0.01:
                assert found == 0
            elif value > level + width / 2 + 0.01:
                assert found == 1
            else:
                assert found == pytest.approx(min(1, max(0, (value - level) / width + 0.5)), abs=2e-3)

    def test_in_a_pipeline(self) -> None:
        pipeline = Pipeline([Window(40, 80), RandomPatch((2, 3, 4), foreground=0.0)])
        volume = torch.full((1, 4, 5, 6), 40.0)
        assert torch.equal(pipeline({"image": volume})["image"], torch.full((1, 2, 3, 4), 0.5))
        assert Pipeline.from_config(pipeline.to_config()).written == pipeline.written
        assert bool((volume == 40).all())

    def test_refuses_what_is_no_window(self) -> None:
        for level, width in ((0, 0), (0, -1), (math.nan, 1), (0, math.inf)):
            with pytest.raises(ConfigError, match="window"):
                Window(level, width)
