"""Images warped by a displacement field: each pixel of the result is looked up where the field says.

result(x) = image(x + field(x)), linear between pixels or, for masks, the nearest pixel. Not here: how fields come about
(`fields`) and the pipeline's stage (`elastic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from deepseek.data.image.settings import check_image
from deepseek.errors import ConfigError, DataError

Border = Literal["reflection", "border", "zeros"]
"""What lies outside an image: its mirror image about the edge, the nearest pixel of its edge, or 0."""

_ROUNDS = 20
_SETTLED = 0.01
_FLOAT_EXACT = 2**24
_BAND = 1 << 15
"""Pixels for each thread in a band."""


def elastic_deform(
    images: Tensor, field: Tensor, border: Border = "reflection", dims: Literal[2, 3] | None = None
) -> Tensor:
    """Return images (..., channels, *space) warped by `field` (dims, *space), or (..., dims, *space) with one for each.

    The field is in pixels, its axes in the order of `space`: (y, x) or (z, y, x). `dims` need be given only where the
    shapes can be read both as flat images and as volumes. uint8 stays uint8, rounded; float images keep their dtype
    and their gradient (the field gets none).

    Raises DataError for shapes that don't fit or other kinds of numbers, ConfigError for an unknown border.
    """
    check_image(images, wanted="(..., channels, *space)")
    dims = _dims_of(images, field) if dims is None else dims
    space = images.shape[-dims:]
    _check(space, images.shape[: -dims - 1], field, border, dims)
    # images that share a field are further channels to it, so that a place is worked out once
    flat = (1, -1, *space) if field.ndim == dims + 1 else (-1, *images.shape[-dims - 1 :])
    moves = _split(field.reshape(-1, dims, *space))
    return _deform([_image_layer(images.reshape(flat))], moves, border)[0].reshape(images.shape)


def elastic_deform_mask(masks: Tensor, field: Tensor, border: Border = "reflection") -> Tensor:
    """Return class masks (..., *space) warped by `field` as `elastic_deform` warps images, each pixel the nearest one.

    One field (dims, *space) serves all masks. Any whole or float dtype; classes are below 2**53.
    Raises DataError and ConfigError like `elastic_deform`.
    """
    dims = field.ndim - 1
    _check(masks.shape[-dims:], (), field, border, dims)
    layer = _mask_layer(masks.reshape(1, -1, *masks.shape[-dims:]))
    return _deform([layer], _split(field[None]), border)[0].reshape(masks.shape)


def deform_pair(
    image: Tensor, mask: Tensor | None, moves: Iterable[Tensor], border: Border = "reflection"
) -> tuple[Tensor, Tensor | None]:
    """Return an image (channels, *space) and its mask (*space) warped by the field whose bands `moves` yields.

    The same as `elastic_deform` and `elastic_deform_mask` (where the border's name is checked, and the shapes), but
    places are worked out once for both, and the field (`field_bands`) need not stand in memory as a whole.
    """
    layers = [_image_layer(image[None])] + ([] if mask is None else [_mask_layer(mask[None, None])])
    warped = _deform(layers, (band[None] for band in moves), border)
    return warped[0][0], None if mask is None else warped[1][0, 0]


def follow_points(points: Tensor, field: Tensor) -> Tensor:
    """Return where points (n, dims) of an image come to lie when `field` (dims, *space) warps it.

    Points count pixels from the centre of the first one, axes in the order of `space`. The place x solves
    x + field(x) = point, by fixed-point iteration: exact to 0.01 pixels where the field folds nothing over.
    """
    places = points.to(field.dtype)
    for _ in range(_ROUNDS):
        moved = points - _values_at(field, places)
        settled = bool(((moved - places).abs() < _SETTLED).all())
        places = moved
        if settled:
            break
    return places


def _values_at(field: Tensor, places: Tensor) -> Tensor:
    """Return the field's values (n, dims) between its pixels; outside it those at its edge."""
    dims = len(field)
    sides = torch.tensor(field.shape[1:], dtype=field.dtype)
    grid = ((2 * places + 1) / sides - 1).flip(-1).reshape(1, *([1] * (dims - 1)), -1, dims)
    found = grid_sample(field[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.reshape(dims, -1).T


class _Layer(NamedTuple):
    """What is looked up: (n, channels, *space), between its pixels or at the nearest, in floats of dtype `work`."""

    source: Tensor
    mode: Literal["bilinear", "nearest"]
    work: torch.dtype


class _Band(NamedTuple):
    """Some rows of the result, the source's rows that they look at, and where: (n, rows, ..., dims), x first."""

    rows: slice
    reach: slice
    grid: Tensor


def _image_layer(images: Tensor) -> _Layer:
    return _Layer(images, "bilinear", torch.float64 if images.dtype == torch.float64 else torch.float32)


def _mask_layer(masks: Tensor) -> _Layer:
    """Classes, looked up in floats that hold them exactly."""
    narrow = masks.dtype in (torch.uint8, torch.int8, torch.int16, torch.bool, torch.float32)
    if not narrow and masks.numel():
        low, high = torch.aminmax(masks)
        narrow = -_FLOAT_EXACT <= int(low) and int(high) <= _FLOAT_EXACT
    return _Layer(masks, "nearest", torch.float32 if narrow else torch.float64)


def _deform(layers: Sequence[_Layer], moves: Iterable[Tensor], border: Border) -> list[Tensor]:
    """Return each layer warped by the field whose bands (n, dims, rows, ...) `moves` yields, each with its dtype."""
    warped = [torch.empty_like(layer.source) for layer in layers]
    work = torch.float64 if any(layer.work == torch.float64 for layer in layers) else torch.float32
    for band in _bands(moves, layers[0].source.shape[2:], work):
        for layer, result in zip(layers, warped, strict=True):
            found = _look_up(layer.source[:, :, band.reach].to(work), band.grid, layer.mode, border)
            if result.dtype == torch.uint8 and layer.mode == "bilinear":
                found = found.add_(0.5).to(torch.int32)  # uint8 from int32 takes half the time of that from float
            rows = result[:, :, band.rows]
            if len(found) == len(rows):
                rows.copy_(found)
            else:
                rows.view(rows.shape[1], *found.shape[:1], *found.shape[2:]).movedim(1, 0).copy_(found)
    return warped


def _look_up(source: Tensor, grid: Tensor, mode: str, border: str) -> Tensor:
    """Return a band of the result (n, channels, rows, ...), or (threads, channels, rows / threads, ...) of one image.

    torch shares a batch out among threads, but not one image: so its rows are made a batch.
    """
    threads = torch.get_num_threads()
    if len(grid) == 1 and threads > 1 and grid.shape[1] % threads == 0:
        grid = grid.view(threads, -1, *grid.shape[2:])
        source = source.expand(threads, *source.shape[1:])
    return grid_sample(source, grid, mode=mode, padding_mode=border, align_corners=False)


def _split(field: Tensor) -> list[Tensor]:
    """Return a field (n, dims, *space) in bands so small that the work on one stays in the processor's cache."""
    row = len(field) * math.prod(field.shape[3:])
    height = max(1, _BAND * torch.get_num_threads() // max(1, row))
    return [field[:, :, start : start + height] for start in range(0, field.shape[2], height)]


def _bands(moves: Iterable[Tensor], space: Sequence[int], dtype: torch.dtype) -> Iterator[_Band]:
    """Yield where to look for each band of displacements (n, dims, rows, ...) of an image of `space`."""
    start, dims = 0, len(space)
    lines = [torch.arange(side, dtype=dtype).reshape(-1, *([1] * (dims - 1 - axis))) for axis, side in enumerate(space)]
    centres = [(line * 2 + 1) / side - 1 for line, side in zip(lines, space, strict=True)]
    for move in moves:
        with torch.no_grad():
            rows = slice(start, start + move.shape[2])
            reach = _reach(rows, space[0], move[:, 0])
            height = reach.stop - reach.start
            centres[0] = lines[0][rows] * (2 / height) + ((1 - 2 * reach.start) / height - 1)
            planes = torch.empty(dims, len(move), *move.shape[2:], dtype=dtype, device=move.device)
            for axis, side in enumerate((height, *space[1:])):
                centre = centres[axis].to(move.device)
                torch.add(centre, move[:, axis].to(dtype), alpha=2 / side, out=planes[dims - 1 - axis])
        yield _Band(rows, reach, planes.movedim(0, -1))
        start = rows.stop


def _reach(rows: slice, side: int, moves: Tensor) -> slice:
    """Return the source's rows that `rows` look at when moved; what lies outside is seen mirrored at the edge."""
    low, high = (float(move) for move in torch.aminmax(moves))
    if not math.isfinite(low) or not math.isfinite(high):
        raise DataError("the displacement field has values that are no numbers", found=f"{low} to {high}")
    first, last = math.floor(rows.start + low), math.ceil(rows.stop - 1 + high) + 1
    mirrored_first, mirrored_last = 2 * side - 2 - last, -first + 1
    start, stop = min(first, mirrored_first), max(last, mirrored_last) + 1
    return slice(max(0, min(start, side - 1)), min(side, max(stop, 1)))


def _dims_of(images: Tensor, field: Tensor) -> Literal[2, 3]:
    """Return whether the images are flat or volumes, by the one reading of the two shapes that fits."""
    flat = _fits(images.shape[-2:], images.shape[:-3], field, 2)
    volume = _fits(images.shape[-3:], images.shape[:-4], field, 3)
    if flat and volume:
        raise DataError(
            "images and field can be read as flat and as volumes",
            found=f"images {tuple(images.shape)}, field {tuple(field.shape)}",
            fix="give elastic_deform dims=2 or dims=3",
        )
    return 3 if volume else 2


def _fits(space: torch.Size, lead: tuple[int, ...], field: Tensor, dims: int) -> bool:
    return field.ndim > dims and field.shape[-dims - 1 :] == (dims, *space) and field.shape[: -dims - 1] in ((), lead)


def _check(space: torch.Size, lead: tuple[int, ...], field: Tensor, border: str, dims: int) -> None:
    if border not in get_args(Border):
        raise ConfigError("unknown border", found=repr(border), wanted=", ".join(map(repr, get_args(Border))))
    if dims not in (2, 3) or not field.is_floating_point() or not _fits(space, lead, field, dims):
        raise DataError(
            "the displacement field doesn't fit the images",
            found=f"{field.dtype} {tuple(field.shape)} for images of {tuple(space)}",
            wanted=f"float {(len(space), *space)}, or one such field for each image",
        )
