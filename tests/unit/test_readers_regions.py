"""Run lengths and polygons against a brute force over all pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepseek.data.readers import decode_rle, fill_polygon
from deepseek.data.readers.regions import region_mask
from deepseek.errors import DataError

_MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda drawn: (np.random.default_rng(drawn[2]).random(drawn[:2]) < drawn[3]).astype(np.uint8)
)


def runs_of(mask: NDArray[np.uint8]) -> list[int]:
    """Count along the columns, pixel by pixel; the first run is of zeros."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def compressed(runs: list[int]) -> str:
    """Write runs as COCO does: from the fourth on as difference to the one before the last; 5 bits a character."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
    return text


@given(_MASKS)
def test_run_lengths_give_the_mask_back(mask: NDArray[np.uint8]) -> None:
    height, width = mask.shape
    runs = runs_of(mask)
    assert np.array_equal(decode_rle(runs, height, width), mask)
    assert np.array_equal(decode_rle(compressed(runs), height, width), mask)
    assert np.array_equal(decode_rle(compressed(runs).encode(), height, width), mask)


def test_a_string_that_cocos_own_tool_made() -> None:
    # pycocotools.mask.encode of a 6 x 7 mask with rows 1 to 3, columns 2 to 5 set
    mask = np.zeros((6, 7), dtype=np.uint8)
    mask[1:4, 2:6] = 1
    assert np.array_equal(decode_rle("=33000005", 6, 7), mask)


def test_large_runs_need_several_characters() -> None:
    mask = np.zeros((500, 700), dtype=np.uint8)
    mask[100:400, 50:690] = 1
    assert np.array_equal(decode_rle(compressed(runs_of(mask)), 500, 700), mask)


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ([3, 2], "do not fit"),
        ([10**15], "do not fit"),
        ([-1, 5], "negative|do not fit"),
        ([5, -1], "do not fit"),
        ([2, -2, 4], "do not fit"),
        ([2.0, 2.0], "wrong form"),
        ("\x00", "compressed"),
        ("é" * 3, "compressed"),
        ("oooooooooooooooooooo", "compressed"),
        ("4o", "cut off"),
        (None, "wrong form"),
    ],
)
def test_bad_run_lengths_are_refused(counts: object, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        decode_rle(counts, 2, 2)  # type: ignore[arg-type]


def inside(points: list[tuple[float, float]], x: float, y: float) -> bool:
    """Count the edges that a ray to the left crosses."""
    crossed = False
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
            crossed = not crossed
    return crossed


@given(
    st.lists(st.tuples(st.integers(-8, 24), st.integers(-8, 24)), min_size=3, max_size=9),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_a_polygon_holds_the_pixels_whose_centre_is_inside(
    corners: list[tuple[int, int]], height: int, width: int
) -> None:
    points = [(x / 3, y / 3) for x, y in corners]  # thirds: no centre lies on an edge by rounding alone
    filled = fill_polygon([value for point in points for value in point], height, width)
    expected = [[inside(points, x + 0.5, y + 0.5) for x in range(width)] for y in range(height)]
    differing = np.argwhere(filled != np.array(expected, dtype=np.uint8))
    for y, x in differing:  # only where a centre lies on an edge, within rounding
        assert _distance(points, x + 0.5, y + 0.5) < 1e-9


def _distance(points: list[tuple[float, float]], x: float, y: float) -> float:
    ends = np.array(points[1:] + points[:1]) - np.array(points)
    ahead = np.array([x, y]) - np.array(points)
    along = np.clip((ahead * ends).sum(1) / np.maximum((ends**2).sum(1), 1e-30), 0, 1)
    return float(np.hypot(*(ahead - along[:, None] * ends).T).min())


def test_a_rectangle_fills_its_pixels() -> None:
    filled = fill_polygon([1, 2, 5, 2, 5, 4, 1, 4], 6, 7)
    assert filled.sum() == 8 and filled[2:4, 1:5].all()


@pytest.mark.parametrize(
    "points", [[], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, float("nan"), 6], ["a"] * 6, None, [[1, 2]] * 3]
)
def test_bad_polygons_are_refused(points: object) -> None:
    with pytest.raises(DataError, match="not a polygon"):
        fill_polygon(points, 4, 4)  # type: ignore[arg-type]


def test_outlines_without_end_are_refused() -> None:
    zigzag = [value for turn in range(40_000) for value in (turn % 7, 0, turn % 5, 200)]
    with pytest.raises(DataError, match="too many edges"):
        fill_polygon(zigzag, 200, 10)
    with pytest.raises(DataError, match="not a polygon"):
        fill_polygon([0, 0, 1e308, 5, -1e308, 9], 10, 10)


def test_segmentations_of_all_three_forms() -> None:
    mask = np.zeros((4, 5), dtype=np.uint8)
    mask[1:3, 1:4] = 1
    runs = runs_of(mask)
    for form in (
        {"size": [4, 5], "counts": runs},
        {"size": [4, 5], "counts": compressed(runs)},
        [[1, 1, 4, 1, 4, 3, 1, 3]],
    ):
        assert np.array_equal(region_mask(json.loads(json.dumps(form)), 4, 5), mask)
    parts = [[0, 0, 1, 0, 1, 1, 0, 1], [3, 3, 5, 3, 5, 4, 3, 4]]
    assert region_mask(parts, 4, 5).sum() == 3
    for wrong in ({"size": [5, 4], "counts": runs}, None, "text", {"counts": runs}):
        with pytest.raises(DataError):
            region_mask(wrong, 4, 5)
