"""Image files to tensors and back, with Pillow (extra `vision`).

Every file becomes what a viewer would show, in 8 bits: turned as its EXIF orientation says (EXIF 2.32, tag 0x0112),
palette, CMYK and grey brought to RGB, 16 bits scaled to 8 (65535 is 255), transparent parts on white, of an animation
the first frame. Masks keep their numbers instead. A file is judged by its header before anything is decoded.
Not here: folders and annotations (`deepseek.data.readers`), volumes (`deepseek.data.volume`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import ConfigError, DataError, DeepSeekError
from deepseek.files import atomic_path
from deepseek.lazy import require

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485
"""Pixels that a file may claim: a quarter of a GiB at three bytes each, Pillow's own default."""

_FORMATS = ("JPEG", "PNG", "MPO", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "TGA", "AVIF", "JPEG2000")
"""What is read. Formats that start other programs (EPS) or hold no pixels of their own stay out."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112
_HEAD = "can't read the image"


def read_image(
    source: str | Path | bytes,
    *,
    channels: Literal[1, 3, 4] = 3,
    max_pixels: int = MAX_PIXELS,
    target_size: tuple[int, int] | None = None,
) -> Tensor:
    """Return an image file, or its bytes, as uint8 (channels, height, width): 1 grey, 3 RGB, 4 RGBA.

    Without an alpha channel wanted, transparent parts are blended onto white. With `target_size` (height, width), for
    an image that is made that small next, a JPEG is decoded at 1/2, 1/4 or 1/8 if that is no smaller on either side:
    several times faster, with sides rounded up. Boxes and masks count in pixels of the full image: leave it out there.

    Raises DataError, naming the file, for what is no image, is cut short or damaged, or claims more than `max_pixels`;
    ConfigError for other numbers of channels; MissingExtraError without Pillow.
    """
    if channels not in _MODES:
        raise ConfigError("no such number of channels", found=channels, wanted="1 (grey), 3 (RGB) or 4 (RGBA)")
    with _opened(source, max_pixels) as image:
        orientation = _orientation(image)
        if target_size is not None and image.format in ("JPEG", "MPO"):
            height, width = target_size if orientation < 5 else target_size[::-1]
            image.draft(None, (max(1, width), max(1, height)))
        pixels = np.array(_as_mode(image, _MODES[channels]))
    return _upright(torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1), orientation)


def read_mask(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return a mask file as the class of each pixel, int64 (height, width).

    The class is the number stored: the place in the palette, the grey level of 8 or 16 bits, 0 or 1. Raises DataError
    as `read_image` does, and for masks that are coloured in full.
    """
    with _opened(source, max_pixels) as image:
        orientation = _orientation(image)
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise DataError(
                f"the mask {_name(source)} has no class numbers",
                found=f"pixels of mode {image.mode}",
                wanted="grey levels or places in a palette",
                fix="map its colours to class numbers first",
            )
        classes = torch.from_numpy(np.array(image).astype(np.int64))
    return _upright(classes, orientation).contiguous()


def write_image(path: str | Path, image: Tensor, *, quality: int = 95) -> None:
    """Write an image (channels, height, width) of 1, 3 or 4 channels, in the format of the path's ending.

    Values are uint8, or float of full scale 1, which are rounded. `quality` (1 to 100) is for JPEG and WebP. The file
    is whole or absent. Raises DataError for another tensor or ending, StorageError when the disk refuses.
    """
    Image = require("PIL.Image", "vision")
    path = Path(path)
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] not in _MODES or 0 in image.shape:
        found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise DataError("this is no image to write", found=found, wanted="(1, 3 or 4, height, width)")
    if image.is_floating_point():
        image = image.mul(255).round().clamp(0, 255).to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError("this is no image to write", found=image.dtype, wanted="uint8, or float from 0 to 1")
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"can't write images as '{path.suffix}'", found=str(path), wanted=".png, .jpg, .webp or .bmp")
    pixels = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels)
    if kind == "JPEG" and image.shape[0] == 4:
        raise DataError(f"{path.name} can't hold transparency", found="4 channels", wanted="1 or 3 for JPEG")
    options: dict[str, Any] = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
    with atomic_path(path) as temporary:
        picture.save(temporary, format=kind, **options)


@contextmanager
def _opened(source: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image by its header. All that Pillow says in the block, of many types, becomes DataError."""
    Image = require("PIL.Image", "vision")
    Image.init()
    name = _name(source)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=[one for one in _FORMATS if one in Image.OPEN]) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(
                    name, f"{image.width} x {image.height}, {image.width * image.height} pixels", max_pixels
                )
            yield image
    except DeepSeekError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error), max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{_HEAD} {name}", found="no image format that we know", wanted=", ".join(_FORMATS)) from error
    except FileNotFoundError as error:
        raise DataError(f"{_HEAD} {name}", found="no such file") from error
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"{_HEAD} {name}", found=found, wanted="a whole file", fix="replace or remove it") from error


def _too_large(name: str, found: str, max_pixels: int) -> DataError:
    return DataError(
        f"{_HEAD} {name}: it claims too many pixels",
        found=found,
        wanted=f"at most {max_pixels}",
        fix="if you trust it, raise max_pixels, and above 89 million PIL.Image.MAX_IMAGE_PIXELS as well",
    )


def _name(source: str | Path | bytes) -> str:
    return f"in {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1 to 8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are fine: viewers show such a file as it is
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Return pixels (..., height, width) turned and mirrored as the EXIF orientation says."""
    if orientation >= 5:  # rows of the file are columns of the picture
        pixels = pixels.transpose(-1, -2)
    mirrored = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation)
    return pixels if mirrored is None else torch.flip(pixels, mirrored)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture in mode "L", "RGB" or "RGBA", blended onto white where alpha is not wanted."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    elif image.mode == "LAB":
        image = image.convert("RGB")  # the only way out of it
    if image.mode == mode and "transparency" not in image.info:
        return image
    if mode != "RGBA" and image.has_transparency_data:
        clear = image.convert("RGBA")
        white = clear.copy()
        white.paste((255, 255, 255, 255), (0, 0, *clear.size))
        white.alpha_composite(clear)
        image = white.convert("RGB")
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits in 8: level / 257, rounded to nearest."""
    levels: NDArray[Any] = np.array(image)
    low, high = levels.min(), levels.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise DataError(
            f"pixels of mode {image.mode} have no known full scale",
            found=f"values from {low} to {high}",
            wanted="8 or 16 bits for each channel",
            fix="read it as a volume or scale it to 16 bits",
        )
    scaled = (levels.astype(np.uint32) + 128) // 257
    picture: Image.Image = require("PIL.Image", "vision").fromarray(scaled.astype(np.uint8))
    return picture
