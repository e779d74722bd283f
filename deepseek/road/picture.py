"""Pictures for the report: tensors to PNG files, boxes and masks drawn on them. Source of the format: RFC 2083."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from deepseek.files import atomic_path

WANTED, FOUND = (46, 160, 80), (225, 105, 30)
"""Colours (red, green, blue): what is there, and what the model says."""

_LARGEST_SIDE = 320


def shown_image(pixels: Tensor) -> Tensor:
    """Return an image (channels, height, width) of any scale as uint8 (3, height, width), at most 320 a side."""
    image = pixels.detach().float().cpu()
    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    low, high = float(image.min()), float(image.max())
    image = (image - low) / (high - low or 1.0) * 255
    step = -(-max(image.shape[1:]) // _LARGEST_SIDE)
    return image[:, ::step, ::step].round().to(torch.uint8)


def with_boxes(image: Tensor, boxes: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Return the uint8 image (3, height, width) with frames around `boxes` (n, 4), xyxy in shares of the image."""
    image, (height, width) = image.clone(), image.shape[1:]
    scale = torch.tensor([width, height, width, height])
    limit = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    paint = torch.tensor(color, dtype=torch.uint8)[:, None]
    for x1, y1, x2, y2 in torch.minimum((boxes.cpu() * scale).long().clamp(min=0), limit).tolist():
        image[:, y1, x1 : x2 + 1] = image[:, y2, x1 : x2 + 1] = paint
        image[:, y1 : y2 + 1, x1] = image[:, y1 : y2 + 1, x2] = paint
    return image


def mask_image(mask: Tensor, classes: int, size: tuple[int, int]) -> Tensor:
    """Return a mask (height, width) of classes as grey levels, uint8 (3, *size)."""
    levels = (mask.cpu().clamp(0, classes - 1) * (255 // max(1, classes - 1))).to(torch.uint8)
    rows = torch.arange(size[0]) * mask.shape[0] // size[0]
    columns = torch.arange(size[1]) * mask.shape[1] // size[1]
    return levels[rows][:, columns].expand(3, -1, -1)


def write_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image (3, height, width), or (1, height, width) of grey levels. Raises StorageError."""
    rows = image.permute(1, 2, 0).contiguous().numpy()
    height, width = rows.shape[:2]
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.shape[0] == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
