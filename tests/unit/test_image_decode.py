"""Image files of every kind that Pillow writes, damaged ones, and ones that claim too much."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.data.image import read_image, read_mask, write_image
from deepseek.errors import ConfigError, DataError, MissingExtraError

Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_pixels(height: int, width: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0:height, 0:width]
    planes = (127 + 100 * np.sin(x / 17), 127 + 100 * np.cos(y / 13), (x + y) * 255 / (height + width))
    return np.stack(planes, axis=-1).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class NoPillow:
    """A finder of modules that finds no Pillow."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'", name="PIL")


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = random_pixels(5, 7, 3)
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(pixels)))
    found = read_image(path)
    assert found.dtype == torch.uint8 and found.shape == (3, 5, 7)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)
    assert torch.equal(found, read_image(path.read_bytes()))
    found += 1  # it may be written to


def test_grey_one_bit_and_palette_become_rgb() -> None:
    grey = random_pixels(4, 6)
    assert np.array_equal(read_image(encoded(Image.fromarray(grey))).numpy(), np.stack([grey] * 3))
    bits = grey > 127
    assert np.array_equal(read_image(encoded(Image.fromarray(bits))).numpy(), np.stack([bits * np.uint8(255)] * 3))
    palette = Image.fromarray(grey % 3).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    colours = np.array([[10, 20, 30], [200, 100, 0], [1, 2, 3]], dtype=np.uint8)
    assert np.array_equal(read_image(encoded(palette)).permute(1, 2, 0).numpy(), colours[grey % 3])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    levels = np.array([[0, 128, 129, 257], [32896, 65406, 65407, 65535]], dtype=np.uint16)
    found = read_image(encoded(Image.fromarray(levels), kind), channels=1)
    assert found.tolist() == [[[0, 0, 1, 1], [128, 254, 255, 255]]]


def test_float_pixels_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0.5, 1e6]], dtype=np.float32)), "TIFF")
    with pytest.raises(DataError, match="no known full scale"):
        read_image(data)


def test_alpha_is_blended_onto_white() -> None:
    rgba = random_pixels(6, 5, 4)
    alpha = rgba[..., 3:].astype(float) / 255
    wanted = rgba[..., :3] * alpha + 255 * (1 - alpha)
    found = read_image(encoded(Image.fromarray(rgba))).permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() <= 1
    kept = read_image(encoded(Image.fromarray(rgba)), channels=4)
    assert np.array_equal(kept.permute(1, 2, 0).numpy(), rgba)
    grey = read_image(encoded(Image.fromarray(rgba).convert("LA")), channels=1)
    assert grey.shape == (1, 6, 5) and grey.float().mean() > 120


def test_a_transparent_colour_of_a_palette_or_of_rgb_is_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert read_image(encoded(palette, transparency=0))[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]
    rgb = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], dtype=np.uint8))
    assert read_image(encoded(rgb, transparency=(9, 8, 7)))[:, 0].T.tolist() == [[255, 255, 255], [1, 2, 3]]


def test_cmyk_shows_its_colours() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink: red
    for kind in ("JPEG", "TIFF"):
        red, green, blue = read_image(encoded(cmyk, kind)).float().mean((1, 2)).tolist()
        assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_gives_every_number_of_channels(mode: str, channels: Any) -> None:
    found = read_image(encoded(Image.new(mode, (3, 2)), "TIFF" if mode != "P" else "GIF"), channels=channels)
    assert found.shape == (channels, 2, 3) and found.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=50, **options)
    assert read_image(data)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    image = Image.fromarray(smooth_pixels(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(read_image(data).permute(1, 2, 0).numpy(), wanted)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_passed_over() -> None:
    data = encoded(Image.fromarray(smooth_pixels(8, 8)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + bytes(9))
    assert read_image(data).shape == (3, 8, 8)


def test_a_jpeg_is_decoded_smaller_where_a_smaller_size_is_wanted() -> None:
    data = encoded(Image.fromarray(smooth_pixels(333, 512)), "JPEG", quality=95)
    assert read_image(data, target_size=(160, 200)).shape == (3, 167, 256)
    assert read_image(data, target_size=(333, 512)).shape == (3, 333, 512)
    assert read_image(data, target_size=(1000, 1)).shape == (3, 333, 512)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(smooth_pixels(128, 512)), "JPEG", exif=exif)
    assert read_image(turned, target_size=(256, 64)).shape == (3, 256, 64)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for width, height in ((60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)):
        path.write_bytes(bomb(width, height))
        with pytest.raises(DataError, match="too many pixels") as caught:
            read_image(path)
        assert "bomb.png" in str(caught.value) and str(width * height) in str(caught.value)
    path.write_bytes(bomb(20, 20))
    with pytest.raises(DataError, match="20 x 20, 400 pixels"):
        read_image(path, max_pixels=399)


def test_files_that_are_no_whole_image_are_refused(tmp_path: Path) -> None:
    whole = {
        kind: encoded(Image.fromarray(random_pixels(64, 64, 3)), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP")
    }
    path = tmp_path / "x.img"
    for data in [one[: len(one) // 2] for one in whole.values()] + [b"", b"hello", whole["PNG"][:20], bomb(30, 30)]:
        path.write_bytes(data)
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match="x.img"):
                read(path)
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="image"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="in 5 bytes"):
        read_image(b"hello")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_flipped_bytes_never_raise_anything_but_data_error(kind: str) -> None:
    whole = encoded(Image.fromarray(random_pixels(16, 16, 3)), kind)
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 200), 3):
            data[place] = rng.integers(0, 256)
        try:
            image = read_image(bytes(data), max_pixels=1_000_000)
        except DataError:
            continue
        assert image.dtype == torch.uint8 and image.shape[0] == 3


def test_postscript_is_not_run() -> None:
    with pytest.raises(DataError, match="no image format"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_wrong_channels_and_a_missing_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="channels"):
        read_image(b"", channels=2)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "meta_path", [NoPillow(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "PIL.Image")
    monkeypatch.delitem(sys.modules, "PIL")
    with pytest.raises(MissingExtraError, match=r"\[vision\]"):
        read_image(b"")


def test_masks_keep_their_numbers() -> None:
    classes = random_pixels(9, 6) % 21
    palette = Image.fromarray(classes).convert("P")
    palette.putpalette(random_pixels(63).tolist())
    for image in (palette, Image.fromarray(classes)):
        found = read_mask(encoded(image))
        assert found.dtype == torch.int64 and np.array_equal(found.numpy(), classes)
    many = np.array([[0, 300, 65535]], dtype=np.uint16)
    assert read_mask(encoded(Image.fromarray(many))).tolist() == [[0, 300, 65535]]
    assert read_mask(encoded(Image.fromarray(classes > 10))).unique().tolist() == [0, 1]
    with pytest.raises(DataError, match="class numbers"):
        read_mask(encoded(Image.fromarray(random_pixels(4, 4, 3))))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_is_read_again(channels: Any, tmp_path: Path) -> None:
    image = torch.from_numpy(random_pixels(channels, 5, 9))
    for ending in (".png", ".tiff"):
        path = tmp_path / "folder" / f"x{ending}"
        write_image(path, image)
        assert torch.equal(read_image(path, channels=channels), image)
    write_image(tmp_path / "y.png", image.float() / 255)
    assert torch.equal(read_image(tmp_path / "y.png", channels=channels), image)


def test_a_jpeg_is_close_to_what_was_written(tmp_path: Path) -> None:
    image = torch.from_numpy(smooth_pixels(40, 50)).permute(2, 0, 1)
    write_image(tmp_path / "x.jpg", image)
    assert (read_image(tmp_path / "x.jpg").float() - image.float()).abs().mean() < 3


def test_writing_refuses_what_is_no_image(tmp_path: Path) -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for wrong in (image[0], image[:2], image.int(), image[:, :0]):
        with pytest.raises(DataError, match="no image"):
            write_image(tmp_path / "x.png", wrong)
    with pytest.raises(DataError, match="ending|as '"):
        write_image(tmp_path / "x.xyz", image)
    with pytest.raises(DataError, match="transparency"):
        write_image(tmp_path / "x.jpg", torch.zeros(4, 4, 4, dtype=torch.uint8))
    assert os.listdir(tmp_path) == []
