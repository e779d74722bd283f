"""Regions as COCO files have them, to masks: run lengths, plain and compressed, and polygons.

Source: the COCO data format (https://cocodataset.org/#format-data). Runs go down the columns and begin with zeros.
A polygon holds the pixels whose centre is inside it (even-odd rule); COCO's own tools trace outlines on a grid five
times finer, which differs by a pixel along edges. Not here: the files (`coco`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import DataError

_FARTHEST = 1e7
_MOST_CROSSINGS = 1 << 22


def decode_rle(counts: Sequence[int] | str | bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask (height, width), 0 or 1, of run lengths: ints, or COCO's compressed string.

    Raises DataError for runs that do not make up height x width pixels.
    """
    runs = _uncompressed(counts) if isinstance(counts, str | bytes) else _plain(counts)
    total = sum(runs)
    if total != height * width or any(run < 0 for run in runs):
        raise DataError(
            "the run lengths do not fit the image",
            found=f"{total} pixels" if total != height * width else "a negative run",
            wanted=f"{height} x {width} = {height * width}",
        )
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _plain(counts: Sequence[int]) -> list[int]:
    if not isinstance(counts, list | tuple) or not all(type(run) is int for run in counts):
        raise DataError(
            "run lengths of a wrong form", found=type(counts).__name__, wanted="a list of ints, or a string"
        )
    return list(counts)


def _uncompressed(counts: str | bytes) -> list[int]:
    """Return the runs: 5 bits a character from "0", the sixth says that more follow; from the fourth, differences."""
    data = counts.encode("utf-8") if isinstance(counts, str) else counts
    runs: list[int] = []
    value, shift = 0, 0
    for code in data:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError("not a compressed run length", found=repr(data[:40]), wanted="characters from '0' to 'o'")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise DataError("a compressed run length is cut off", found=repr(data[-40:]))
    return runs


def fill_polygon(points: Sequence[float], height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask (height, width), 0 or 1, of a polygon x1, y1, x2, y2, ... in pixels.

    Raises DataError for fewer than three points, numbers that are not finite, and outlines of millions of crossings.
    """
    try:
        corners = np.array(points, dtype=np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not (np.abs(corners) <= _FARTHEST).all():
        wanted = f"x1, y1, x2, y2, x3, y3, ... within {_FARTHEST:g} pixels"
        raise DataError("not a polygon", found=str(points)[:80], wanted=wanted)
    x, y = corners[0::2], corners[1::2]
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # each edge crosses the centre lines of rows [first, last); there it turns the pixels right of it over
    first = np.ceil(np.minimum(y, next_y) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y, next_y) - 0.5).clip(0, height).astype(np.int64)
    spans = last - first
    if spans.sum() > _MOST_CROSSINGS:
        raise DataError("a polygon of too many edges", found=f"{spans.sum()} crossed rows", wanted=str(_MOST_CROSSINGS))
    edge = np.repeat(np.arange(len(x)), spans)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge]
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    turns = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(turns, (row, column), 1)
    filled: NDArray[np.uint8] = (np.cumsum(turns[:, :width], axis=1) & 1).astype(np.uint8)
    return filled


def region_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask (height, width) of an annotation's `segmentation`: polygons, joined, or run lengths.

    Raises DataError for any other form, and for run lengths made for another size.
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [height, width]:
            raise DataError("the run lengths are of another size", found=str(size)[:40], wanted=f"[{height}, {width}]")
        return decode_rle(segmentation.get("counts", []), height, width)
    if not isinstance(segmentation, list):
        raise DataError("no segmentation", found=type(segmentation).__name__, wanted="polygons or run lengths")
    mask = np.zeros((height, width), dtype=np.uint8)
    for polygon in segmentation:
        mask |= fill_polygon(polygon, height, width)
    return mask
