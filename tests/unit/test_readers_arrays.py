"""IDX, NPY and NPZ against arrays that numpy wrote, and files that are cut off or lie about their size."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepseek.data.readers import Arrays, Idx, open_reader, read_idx
from deepseek.errors import ConfigError, DataError

CODES = {">u1": 8, ">i1": 9, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(values: NDArray[Any], dtype: str = ">u1") -> bytes:
    sides = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, CODES[dtype], values.ndim]) + sides + values.astype(dtype).tobytes()


@given(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans())
def test_idx_files_give_the_array_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: list[int], packed: bool
) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape)
    data = idx_bytes(values, dtype)
    path = tmp_path_factory.getbasetemp() / "array-idx"
    path.write_bytes(gzip.compress(data) if packed else data)
    read = read_idx(path)
    assert read.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(read, values)


def mnist_like(folder: Path, part: str = "t10k", count: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(count)
    images, labels = rng.integers(0, 256, (count, 4, 3), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return images, labels


def test_images_with_labels(tmp_path: Path) -> None:
    images, labels = mnist_like(tmp_path)
    reader = open_reader(tmp_path)
    assert isinstance(reader, Idx) and len(reader) == 5
    sample = pickle.loads(pickle.dumps(reader)).read(3)
    assert np.array_equal(sample["image"].numpy(), images[3][None]) and sample["label"] == labels[3]
    alone = open_reader(tmp_path / "t10k-images-idx3-ubyte.gz").read(4)
    assert sorted(alone) == ["image", "path"]
    assert open_reader(tmp_path / "t10k-labels-idx1-ubyte").read(0)["array"].item() == labels[0]
    mnist_like(tmp_path, "train", 7)
    with pytest.raises(DataError, match="part="):
        open_reader(tmp_path)
    assert len(open_reader(tmp_path, part="train")) == 7
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:4]))
    with pytest.raises(DataError, match="differ in number"):
        open_reader(tmp_path, part="t10k")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x08", "no IDX file"),
        (b"\1\0\x08\1\0\0\0\1a", "no IDX file"),
        (b"\0\0\x07\1\0\0\0\1a", "no IDX file"),
        (b"\0\0\x08\0", "no IDX file"),
        (b"\0\0\x08\3\0\0\0\1", "cut off"),
        (b"\0\0\x08\1\0\0\0\2a", "cut off|does not fit"),
        (b"\0\0\x08\1\0\0\0\1ab", "does not fit"),
        (b"\0\0\x0e\3" + b"\xff" * 12 + b"a" * 100, "cut off"),
    ],
)
def test_idx_headers_are_held_against_the_file(tmp_path: Path, data: bytes, problem: str, packed: bool) -> None:
    path = tmp_path / "bad-idx"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=problem) as caught:
        read_idx(path)
    assert "bad-idx" in str(caught.value)


def test_idx_in_damaged_gzip(tmp_path: Path) -> None:
    data = gzip.compress(idx_bytes(np.arange(200).reshape(2, 10, 10)))
    path = tmp_path / "bad.gz"
    for broken in (data[:-20], data[:30] + b"\0\0\0\0" + data[34:], data[:12]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"bad\.gz"):
            read_idx(path)
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((100, 1000, 10)))))
    with pytest.raises(DataError, match="too large"):
        read_idx(path, max_bytes=10**5)


def test_npz_files(tmp_path: Path) -> None:
    images, labels = np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.array([3, 1, 2, 0])
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(images), y=labels, extra=np.arange(9))
    with pytest.raises(DataError, match="differ in length"):
        open_reader(tmp_path / "a.npz")
    reader = open_reader(tmp_path / "a.npz", keys={"image": "x", "label": "y"})
    assert isinstance(reader, Arrays) and len(reader) == 4
    sample = pickle.loads(pickle.dumps(reader)).read(2)
    assert np.array_equal(sample["image"].numpy(), images[2]) and sample["label"] == 2
    assert isinstance(sample["label"], int) and sample["path"].endswith("a.npz")
    with pytest.raises(ConfigError, match="no array"):
        Arrays(tmp_path / "a.npz", keys={"image": "z"})
    with pytest.raises(DataError, match="can't be held"):
        Arrays(tmp_path / "a.npz", max_bytes=50)


def test_npy_files_are_mapped(tmp_path: Path) -> None:
    values = np.arange(12, dtype=">i4").reshape(4, 3)
    np.save(tmp_path / "x.npy", values.astype("<i4"))
    np.save(tmp_path / "label.npy", np.array([0.5, 1.5, 2.5, 3.5]))
    reader = open_reader(tmp_path)
    again = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 1000
    for one in (reader, again):
        assert one.read(3)["x"].tolist() == [9, 10, 11] and one.read(3)["label"] == 3.5
    one = again.read(0)
    one["x"] += 1  # a copy, not the file
    assert again.read(0)["x"].tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        reader.read(4)


def test_arrays_that_can_not_be_read(tmp_path: Path) -> None:
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    text = tmp_path / "text.npy"
    np.save(text, np.array(["a", "b"]))
    cut = tmp_path / "cut.npy"
    np.save(cut, np.zeros((100, 100)))
    cut.write_bytes(cut.read_bytes()[:5000])
    scalar = tmp_path / "scalar.npy"
    np.save(scalar, np.float32(1))
    claims = tmp_path / "claims.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10**9, 10), "fortran_order": False, "descr": "<f8"})
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 80)
    broken = tmp_path / "broken.npz"
    np.savez_compressed(broken, x=np.arange(1000))
    broken.write_bytes(broken.read_bytes()[:-40])
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    for path in (objects, text, cut, scalar, claims, broken, pickled):
        with pytest.raises(DataError):
            Arrays(path)


@given(st.integers(0, 127), st.binary(min_size=1, max_size=6))
def test_a_damaged_npy_header_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes
) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(6).reshape(3, 2))
    data = bytearray(file.getvalue())
    data[place : place + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(data)
    try:
        reader = Arrays(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(sorted(reader.read(row)) == ["damaged", "path"] for row in range(len(reader)))
