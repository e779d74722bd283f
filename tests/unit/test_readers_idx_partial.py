"""IDX files that are cut off: refused, or with `partial` read as far as they are whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from deepseek.data import open_reader
from deepseek.data.readers.idx import read_idx
from deepseek.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4)).astype(np.uint8)
LABELS = np.random.default_rng(1).integers(0, 256, 50).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return header + values.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_gives_its_whole_rows_when_asked_to(tmp_path: Path, packed: bool) -> None:
    whole = idx(IMAGES)
    data = gzip.compress(whole) if packed else whole
    path = tmp_path / "images"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match="cut off|does not fit"):
        read_idx(path)
    rows = read_idx(path, partial=True)
    assert 10 < len(rows) < 50
    np.testing.assert_array_equal(rows, IMAGES[: len(rows)])
    path.write_bytes(data)
    np.testing.assert_array_equal(read_idx(path, partial=True), IMAGES)


def test_images_without_label_are_left_out_when_asked_to(tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(LABELS)[:-30])
    with pytest.raises(DataError):
        open_reader(tmp_path)
    reader = open_reader(tmp_path, kind="idx", partial=True)
    assert len(reader) == 20
    assert [reader.read(row)["label"] for row in range(20)] == LABELS[:20].tolist()


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\0\0\x08\x03\0\0", b"\1\2\x08\x01\0\0\0\1\0", b"\0\0\x63\x01\0\0\0\1\0"]
)
def test_what_has_no_header_is_refused_all_the_same(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError):
        read_idx(tmp_path / "x", partial=True)
