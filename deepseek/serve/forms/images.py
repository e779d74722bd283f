"""Images as instances: a PNG, JPEG, BMP, GIF (its first frame) or WebP, as a raw body or in base64.

A file is known by its first bytes and judged by its header: kind, then pixels, before one of them is decoded. It is
turned upright by its EXIF orientation, as the reader of training data does, so boxes and masks are of the picture as a
viewer shows it. Not here: the decoder (`deepseek.data.image.decode`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from deepseek.data.image.decode import read_image
from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.errors import DataError, RequestError
from deepseek.lazy import require
from deepseek.serve.forms.checks import TOO_LARGE, WRONG_KIND, bytes_of, object_schema, refused
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes
from deepseek.serve.forms.stages import Road

_KINDS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "BMP": b"BM", "GIF": b"GIF8", "WEBP": b"RIFF"}
_EXAMPLE_SIDE = 64

B64_SCHEMA: Schema = {"type": "string", "contentEncoding": "base64", "minLength": 1}
"""The schema of bytes in base64."""


class ImageTaker:
    """An image through the pipeline's stages."""

    takes: Takes = "image"

    def __init__(
        self, stages: Sequence[Stage | StageGroup], limits: FormLimits, channels: int, sides: tuple[int, ...] = ()
    ) -> None:
        """`sides` (height, width): those of the model's own example."""
        self._road, self._limits = Road(stages), limits
        self._channels = cast(Literal[1, 3, 4], channels)
        self._height, self._width = sides or (_EXAMPLE_SIDE, _EXAMPLE_SIDE)
        self.schema: Schema = {
            **object_schema({"b64": B64_SCHEMA}),
            "description": "PNG, JPEG, BMP, GIF or WebP, in base64",
        }

    def take(self, body: Any) -> Taken:
        """Return `pixel_values`, and where the picture lies in it. Raises RequestError (400, 413, 415)."""
        data = bytes_of(body, "image", self._limits.image_bytes, "image")
        image = decoded(data, self._channels, self._limits.image_pixels)
        batch, placed = self._road.placed({"image": image}, "image")
        return Taken(batch, {"placed": placed})

    def example(self) -> Any:
        """Return a small picture: brighter to the right and down."""
        return {"b64": base64.b64encode(_shades(self._height, self._width)).decode("ascii")}

    def probes(self) -> Sequence[Any]:
        """Return pictures of two shapes."""
        return [_shades(self._height, self._width), _shades(self._height + 13, self._width * 2)]


def decoded(data: bytes, channels: Literal[1, 3, 4], most_pixels: int) -> Tensor:
    """Return an image file as uint8 (channels, height, width), upright. Raises RequestError before it is decoded."""
    kind = next((kind for kind, start in _KINDS.items() if data.startswith(start)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"):
        found = f"bytes that begin with {data[:8].hex()}"
        wanted = ", ".join(_KINDS)
        raise RequestError(
            "'image' is of no kind that is read", field="image", status=WRONG_KIND, found=found, wanted=wanted
        )
    pixels = _claimed_pixels(data, kind)
    if pixels > most_pixels:
        found, wanted = f"{pixels} pixels by its header", f"at most {most_pixels}"
        raise RequestError("'image' has too many pixels", field="image", status=TOO_LARGE, found=found, wanted=wanted)
    try:
        return read_image(data, channels=channels, max_pixels=most_pixels)
    except DataError as error:
        raise refused(error, "image", "'image' is damaged or cut short") from error


def png_bytes(levels: np.ndarray[Any, Any]) -> bytes:
    """Return a picture (height, width) or (height, width, 3 or 4) of uint8, or of uint16 in grey, as a PNG file."""
    out = io.BytesIO()
    require("PIL.Image", "vision").fromarray(levels).save(out, "PNG")
    return out.getvalue()


def _shades(height: int, width: int) -> bytes:
    rows, columns = np.linspace(0, 127, height), np.linspace(0, 127, width)
    return png_bytes((rows[:, None] + columns[None]).astype(np.uint8))


def _claimed_pixels(data: bytes, kind: str) -> int:
    """Return width times height by the file's header. Raises RequestError for a header that can't be read."""
    Image = require("PIL.Image", "vision")
    try:
        with Image.open(io.BytesIO(data), formats=[kind] if kind != "JPEG" else ["JPEG", "MPO"]) as image:
            return int(image.width) * int(image.height)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        wanted = "a picture of a sane size"
        raise RequestError(
            "'image' has too many pixels", field="image", status=TOO_LARGE, found="a bomb by its header", wanted=wanted
        ) from None
    except Exception as error:  # whatever the library says of damaged headers, of many types
        raise RequestError(
            "'image' has a header that can't be read", field="image", found=f"a damaged {kind}", wanted="a whole file"
        ) from error
