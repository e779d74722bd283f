"""NIfTI-1 against nibabel, raw volumes against NumPy; damaged and hostile files end in DataError and little memory."""

import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.volume import read_nifti, read_nifti_mask, read_raw
from deepseek.errors import ConfigError, DataError

KINDS = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def voxels(shape: tuple[int, ...], kind: str = "i2") -> np.ndarray:
    low, high = (0, 200) if kind[0] == "u" else (-100, 100)
    return np.random.default_rng(0).integers(low, high, shape).astype(kind)


def write(path: Path, data: np.ndarray, change: Any = None, order: str = "<", affine: np.ndarray | None = None) -> Path:
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(data.dtype)
    image = nibabel.Nifti1Image(data, affine, header)
    if change:
        change(image.header)
    nibabel.save(image, path)
    return path


def patched(path: Path, offset: int, form: str, *values: Any) -> Path:
    """Return the (unzipped) file with some of its header overwritten."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)
    return path


class TestNifti:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("order", "suffix"), [("<", ".nii"), (">", ".nii.gz")])
    def test_reads_what_nibabel_wrote(self, tmp_path: Path, kind: str, order: str, suffix: str) -> None:
        data = voxels((5, 6, 7), kind)
        path = write(tmp_path / f"a{suffix}", data, order=order)
        found = read_nifti(path)
        assert found.image.shape == (1, 7, 6, 5)
        assert found.image.dtype == (torch.uint8 if kind == "u1" else torch.float32)
        assert np.array_equal(found.image[0].numpy().T, data)
        assert np.array_equal(read_nifti_mask(path).numpy().T, data)

    def test_scales_as_the_header_says(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.nii", voxels((4, 5, 6)))
        patched(path, 112, "<2f", 0.37, -1024.0)
        wanted = nibabel.load(path).get_fdata()
        assert np.allclose(read_nifti(path).image[0].numpy().T, wanted, rtol=1e-6)
        for slope, inter in ((0.0, 5.0), (float("nan"), 0.0)):
            patched(path, 112, "<2f", slope, inter)
            assert np.array_equal(read_nifti(path).image[0].numpy().T, nibabel.load(path).get_fdata())

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.01),
        st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
        st.sampled_from([1, -1]),
        st.sampled_from(["qform", "sform"]),
    )
    def test_affine_and_spacing_agree_with_nibabel(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        quaternion: list[float],
        sides: list[float],
        flip: int,
        kind: str,
    ) -> None:
        affine = np.eye(4)
        affine[:3, :3] = nibabel.quaternions.quat2mat(quaternion) @ np.diag([*sides[:2], sides[2] * flip])
        affine[:3, 3] = [10, -20, 30]

        def change(header: nibabel.Nifti1Header) -> None:
            header.set_qform(affine if kind == "qform" else None, code=int(kind == "qform"))
            header.set_sform(affine if kind == "sform" else None, code=int(kind == "sform"))

        path = write(tmp_path_factory.mktemp("affine") / "a.nii", voxels((2, 3, 4)), None)
        image = nibabel.load(path)
        change(image.header)
        path.write_bytes(image.header.binaryblock + path.read_bytes()[348:])
        found, wanted = read_nifti(path), nibabel.load(path)
        assert np.allclose(found.affine, wanted.affine, atol=1e-4)
        assert np.allclose(found.spacing[::-1], wanted.header.get_zooms())

    def test_without_position_the_sides_are_the_affine(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.nii", voxels((2, 3, 4)))
        patched(path, 80, "<3f", 2.0, 3.0, 4.0)
        patched(path, 252, "<2h", 0, 0)
        found = read_nifti(path)
        assert found.spacing == (4.0, 3.0, 2.0)
        assert np.array_equal(found.affine, np.diag([2.0, 3.0, 4.0, 1.0]))

    @pytest.mark.parametrize("shape", [(9,), (8, 9), (4, 5, 6, 3), (4, 5, 6, 1, 2)])
    def test_fewer_and_more_axes(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        data = voxels(shape)
        found = read_nifti(write(tmp_path / "a.nii", data)).image
        assert found.ndim == 4
        assert np.array_equal(found.numpy().reshape(data.T.shape), data.T)

    def test_colours_are_channels(self, tmp_path: Path) -> None:
        colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        data = np.zeros((4, 5, 6), dtype=colours)
        for place, name in enumerate("RGB"):
            data[name] = voxels((4, 5, 6), "u1") // (place + 1)
        image = read_nifti(write(tmp_path / "a.nii.gz", data)).image
        assert image.shape == (3, 6, 5, 4)
        for channel, name in zip(image, "RGB", strict=True):
            assert np.array_equal(channel.numpy().T, data[name])

    def test_masks_are_whole_numbers_of_one_channel(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.nii", np.full((2, 2, 2), 1.5))
        with pytest.raises(DataError, match="no mask"):
            read_nifti_mask(path)
        with pytest.raises(DataError, match="no mask"):
            read_nifti_mask(write(path, np.full((2, 2, 2), np.nan)))
        with pytest.raises(DataError, match="2 channels"):
            read_nifti_mask(write(path, voxels((2, 2, 2, 2))))


class TestHostileNifti:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_a_header_that_claims_terabytes_costs_nothing(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / "a.nii", voxels((4, 4, 4)))
        patched(path, 40, "<8h", 7, *[32767] * 7)
        if suffix == ".nii.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        tracemalloc.start()
        with pytest.raises(DataError, match=r"a\.nii is shorter") as error:
            read_nifti(path)
        assert "32767" in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    def test_a_gzip_bomb_is_refused_by_its_header(self, tmp_path: Path) -> None:
        """A file of 100 kB that really unpacks to 100 MB, with an honest header, and one with a small header."""
        path = write(tmp_path / "a.nii", voxels((10, 10, 10), "u1"))
        head = patched(path, 40, "<8h", 3, 1000, 1000, 100, 1, 1, 1, 1).read_bytes()[:352]
        bomb = tmp_path / "b.nii.gz"
        with gzip.open(bomb, "wb") as file:
            file.write(head)
            for _ in range(100):
                file.write(bytes(10**6))
        tracemalloc.start()
        with pytest.raises(DataError, match="larger than allowed"):
            read_nifti(bomb, max_bytes=50_000_000)
        small = struct.pack("<8h", 3, 10, 10, 10, 1, 1, 1, 1)
        with gzip.open(bomb, "wb") as file:
            file.write(head[:40] + small + head[56:])
            for _ in range(100):
                file.write(bytes(10**6))
        assert read_nifti(bomb).image.shape == (1, 10, 10, 10)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()

    def test_cut_short_anywhere(self, tmp_path: Path) -> None:
        whole = write(tmp_path / "a.nii", voxels((4, 4, 4))).read_bytes()
        path = tmp_path / "cut.nii"
        for length in (0, 1, 2, 100, 347, 348, 351, 352, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"cut\.nii"):
                read_nifti(path)
        zipped = gzip.compress(whole)
        for length in (2, 10, 40, len(zipped) // 2, len(zipped) - 9, len(zipped) - 1):
            path.write_bytes(zipped[:length])
            with pytest.raises(DataError, match=r"cut\.nii"):
                read_nifti(path)

    def test_a_wrong_checksum_is_found(self, tmp_path: Path) -> None:
        zipped = bytearray(gzip.compress(write(tmp_path / "a.nii", voxels((4, 4, 4))).read_bytes()))
        zipped[-6] ^= 1
        (tmp_path / "b.nii.gz").write_bytes(zipped)
        with pytest.raises(DataError, match="CRC"):
            read_nifti(tmp_path / "b.nii.gz")

    @pytest.mark.parametrize(
        ("offset", "form", "values", "message"),
        [
            (0, "<i", (540,), "NIfTI-2"),
            (0, "<i", (7,), "no NIfTI-1"),
            (344, "<4s", (b"ni1\0",), "pair"),
            (344, "<4s", (b"abcd",), "no NIfTI-1"),
            (40, "<h", (0,), "no shape"),
            (40, "<h", (8,), "no shape"),
            (42, "<h", (-3,), "no shape"),
            (42, "<h", (0,), "no shape"),
            (70, "<h", (32,), "kind"),
            (70, "<h", (999,), "kind"),
            (108, "<f", (float("nan"),), "place"),
            (108, "<f", (float("inf"),), "place"),
            (108, "<f", (-5.0,), "place"),
            (108, "<f", (100.0,), "place"),
            (108, "<f", (1e30,), "shorter"),
            (112, "<2f", (1.0, float("nan")), "scaling"),
        ],
    )
    def test_headers_that_make_no_sense(
        self, tmp_path: Path, offset: int, form: str, values: tuple[Any, ...], message: str
    ) -> None:
        path = patched(write(tmp_path / "a.nii", voxels((4, 4, 4))), offset, form, *values)
        with pytest.raises(DataError, match=message) as error:
            read_nifti(path)
        assert "a.nii" in str(error.value)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_any_damage_is_a_data_error_or_a_volume(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.getbasetemp()
        whole = folder / "whole.nii"
        if not whole.exists():
            write(whole, voxels((4, 4, 4)))
        raw = bytearray(whole.read_bytes())
        for place in data.draw(st.lists(st.integers(0, 351), min_size=1, max_size=12)):
            raw[place] = data.draw(st.integers(0, 255))
        path = folder / "damaged.nii"
        path.write_bytes(gzip.compress(bytes(raw)) if data.draw(st.booleans()) else bytes(raw))
        try:
            with np.errstate(all="ignore"):
                assert read_nifti(path).image.ndim == 4
        except DataError as error:
            assert "damaged.nii" in str(error)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="none.nii"):
            read_nifti(tmp_path / "none.nii")


class TestRaw:
    @pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", ">f8", "u1"])
    def test_reads_what_numpy_wrote(self, tmp_path: Path, kind: str) -> None:
        data = voxels((3, 4, 5), "i1").astype(kind)
        (tmp_path / "a.raw").write_bytes(b"head" + data.tobytes())
        found = read_raw(tmp_path / "a.raw", (3, 4, 5), kind, offset=4)
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        assert np.array_equal(found, data)

    def test_the_size_must_be_exact(self, tmp_path: Path) -> None:
        path = tmp_path / "a.raw"
        path.write_bytes(bytes(100))
        for shape, dtype in (((10, 11), "u1"), ((9, 11), "u1"), ((10**6, 10**6, 10**6), "<f8"), ((100,), "<i2")):
            with pytest.raises(DataError, match=r"a\.raw has another size"):
                read_raw(path, shape, dtype)
        with pytest.raises(DataError, match="none.raw"):
            read_raw(tmp_path / "none.raw", (1,), "u1")

    def test_wrong_arguments(self, tmp_path: Path) -> None:
        for shape, dtype, offset in (
            ((), "u1", 0),
            ((0,), "u1", 0),
            ((2,), "voxel", 0),
            ((2,), "O", 0),
            ((2,), "u1", -1),
        ):
            with pytest.raises(ConfigError):
                read_raw(tmp_path / "a.raw", shape, dtype, offset=offset)
