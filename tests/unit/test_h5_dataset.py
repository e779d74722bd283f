"""H5Dataset against the arrays that were written: layouts, slices, patches, several files, processes, damaged files."""

import importlib
import itertools
import multiprocessing
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deepseek as ds
from deepseek.data.loaders import DistributedDataset
from deepseek.data.loaders.h5_chunks import BlockReader
from deepseek.data.loaders.h5_grid import Grid, Part
from deepseek.errors import ConfigError, DataError, MissingExtraError
from deepseek.utils.data import ChunkSampler, DataLoader, H5Dataset

h5py = pytest.importorskip("h5py")
ROWS = 100
IMAGES = np.random.default_rng(0).integers(0, 100, (ROWS, 3, 8, 6))
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (7, 3, 8, 6)},
    "gzip": {"chunks": (16, 3, 8, 6), "compression": "gzip"},
    "gzip tiles": {"chunks": (9, 2, 3, 4), "compression": "gzip", "shuffle": True},
    "shuffle alone": {"chunks": (9, 2, 3, 4), "shuffle": True},
    "checksum": {"chunks": (16, 3, 8, 6), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (16, 3, 8, 6), "compression": "lzf"},
}


def write(path: Path, dtype: str = "f4", rows: slice = slice(None), **layout: Any) -> Path:
    with h5py.File(path, "w") as handle:
        handle.create_dataset("image", data=IMAGES[rows].astype(dtype), **layout)
        handle["label"] = np.arange(ROWS)[rows]
    return path


def images(samples: Any) -> torch.Tensor:
    return torch.stack([sample["image"].double() for sample in samples])


@pytest.mark.parametrize("dtype", ["f4", ">i2", "u1", "f2", "?"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_was_written(layout: str, dtype: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", dtype, **LAYOUTS[layout])
    wanted = torch.from_numpy(IMAGES.astype(dtype).astype("f8"))
    order = np.random.default_rng(1).permutation(ROWS).tolist()
    for options in ({"threads": 2}, {"threads": 1, "cache_bytes": 0}, {"cache_bytes": 20_000, "threads": 1}):
        data = H5Dataset(path, **options)
        samples = data.__getitems__(order)
        assert torch.equal(images(samples), wanted[order])
        assert [int(sample["label"]) for sample in samples] == order
        assert torch.equal(images([data[5], data[-1]]), wanted[[5, -1]])
    cut = H5Dataset(path, slices=(slice(80, 10, -3), slice(1, None), slice(2, 7)))
    assert torch.equal(images(cut.__getitems__(range(len(cut)))), wanted[list(range(80, 10, -3))][:, 1:, 2:7])


def test_samples_are_copies(tmp_path: Path) -> None:
    data = H5Dataset(write(tmp_path / "a.h5", **LAYOUTS["gzip"]))
    data[3]["image"].zero_()
    assert torch.equal(data[3]["image"].double(), torch.from_numpy(IMAGES[3]).double())


def test_chunks_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        made = handle.create_dataset("image", (40, 5), "f4", chunks=(8, 5), compression="gzip", fillvalue=3.0)
        made[8:12] = 1.0
        made.id.write_direct_chunk((16, 0), np.full((8, 5), 2.0, "f4").tobytes(), filter_mask=1)  # stored as it is
    data = H5Dataset(tmp_path / "a.h5", "image")
    assert [float(data[row]["image"][0]) for row in (0, 8, 11, 12, 16, 39)] == [3.0, 1.0, 1.0, 3.0, 2.0, 3.0]


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{begin}.h5", "f4", slice(begin, begin + 25), **LAYOUTS["gzip"]) for begin in (0, 25, 50)
    ]
    data = H5Dataset(paths, slices=slice(10, None))
    assert len(data) == 65
    assert [int(sample["label"]) for sample in data.__getitems__([0, 64, 15, 14, 40])] == [10, 74, 25, 24, 50]
    assert data.read(20)["path"] == str(paths[1])
    assert data.block_starts().tolist() == [0, 6, 15, 31, 40, 56, 65]
    with pytest.raises(IndexError):
        data[65]


def test_fields_by_name_and_text_and_ragged_rows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle["train/x"] = np.arange(3.0)
        handle["name"] = ["één", "二", "three"]
        ragged = handle.create_dataset("ragged", (3,), h5py.vlen_dtype(np.int32))
        ragged[1] = [1, 2, 3]
        handle["name_number"] = np.arange(3)
    data = H5Dataset(tmp_path / "a.h5", {"x": "train/x", "name": "name", "ragged": "ragged"}, transform=list)
    assert data[1] == ["x", "name", "ragged"]
    sample = H5Dataset(tmp_path / "a.h5", {"x": "train/x", "name": "name", "ragged": "ragged"})[1]
    assert sample["x"] == 1 and sample["name"] == "二" and sample["ragged"].tolist() == [1, 2, 3]
    assert set(H5Dataset(tmp_path / "a.h5", None)[0]) == {"name", "name_number", "ragged"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_patches_cover_the_array(data: st.DataObject) -> None:
    space = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    patch = tuple(data.draw(st.integers(1, size)) for size in space)
    stride = data.draw(st.none() | st.just(tuple(data.draw(st.integers(1, size)) for size in patch)))
    grid = Grid({"raw": (2, *space)}, Part(patch=patch, stride=stride), Path("a.h5"))
    seen, places = np.zeros((2, *space), int), set()
    for number in range(len(grid)):
        place = grid.patch("raw", number)
        assert seen[place].shape == grid.sample_shape("raw") == (2, *patch)
        seen[place] += 1
        places.add(str(place))
    assert seen.min() >= 1 and len(places) == len(grid)


def test_patches_of_a_volume(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 9, (20, 21, 22)).astype("i2")
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle.create_dataset("raw", data=volume, chunks=(8, 8, 8), compression="gzip")
        handle["mask"] = np.stack([volume, volume])
    data = H5Dataset(tmp_path / "a.h5", ("raw", "mask"), patch=(8, 8, 8), stride=(4, 8, 8))
    assert len(data) == 4 * 3 * 3
    first, last = data[0], data[-1]
    assert torch.equal(first["raw"], torch.from_numpy(volume[:8, :8, :8])) and first["mask"].shape == (2, 8, 8, 8)
    assert torch.equal(last["mask"][1], torch.from_numpy(volume[-8:, -8:, -8:]))
    with pytest.raises(DataError, match="smaller than a patch"):
        H5Dataset(tmp_path / "a.h5", ("raw",), patch=(8, 8, 30))
    with pytest.raises(DataError, match="do not lie alike"):
        H5Dataset(tmp_path / "a.h5", ("raw", "mask"), patch=(8,) * 4)


def read_in_child(data: H5Dataset, pipe: Any) -> None:
    pipe.send(int(data[7]["label"]))


def test_each_process_opens_for_itself(tmp_path: Path) -> None:
    data = H5Dataset(write(tmp_path / "a.h5", **LAYOUTS["gzip"]))
    assert data[1]["label"] == 1  # open here already
    context = multiprocessing.get_context("fork")  # what DataLoader does on Linux
    ours, theirs = context.Pipe()
    child = context.Process(target=read_in_child, args=(data, theirs))
    child.start()
    assert ours.poll(60) and ours.recv() == 7
    child.join()
    assert child.exitcode == 0 and data[2]["label"] == 2
    assert pickle.loads(pickle.dumps(data))[3]["label"] == 3
    data.close()
    assert data[4]["label"] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_read_every_sample_once(workers: int, tmp_path: Path) -> None:
    data = H5Dataset(write(tmp_path / "a.h5", **LAYOUTS["gzip"]))
    sampler = ChunkSampler(data, window=2)
    labels = [[batch["label"].tolist() for batch in DataLoader(data, 8, sampler=sampler, num_workers=workers)]]
    labels.append([batch["labels"].tolist() for batch in DistributedDataset(data, 8, workers, shuffle="blocks")])
    assert all(sorted(sum(epoch, [])) == list(range(ROWS)) for epoch in labels)
    assert len(sampler) == ROWS and list(sampler) != list(sampler)
    by_path = DistributedDataset(tmp_path / "a.h5", 8, workers)
    assert next(iter(by_path))["pixel_values"].shape == (8, 3, 8, 6)


def test_each_chunk_is_unpacked_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = BlockReader.blocks
    monkeypatch.setattr(
        BlockReader, "blocks", lambda self, numbers, *rest: read.extend(numbers) or whole(self, numbers, *rest)
    )
    path = write(tmp_path / "a.h5", **LAYOUTS["gzip"])
    data = H5Dataset(path, "image", cache_bytes=3 * 16 * 3 * 8 * 6 * 4, threads=1)
    order = iter(ChunkSampler(data, window=3))
    while batch := list(itertools.islice(order, 10)):
        data.__getitems__(batch)
    assert sorted(read) == list(range(7))


def test_swmr_sees_rows_that_are_added(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as writer:
        rows = writer.create_dataset("image", data=np.arange(4.0), maxshape=(None,), chunks=(4,), compression="gzip")
        writer.swmr_mode = True
        data = H5Dataset(tmp_path / "a.h5", "image", swmr=True)
        assert len(data) == 4 and data[3]["image"] == 3
        rows.resize((6,))
        rows[4:] = [40, 50]
        rows.flush()
        data.refresh()
        assert len(data) == 6 and data[5]["image"] == 50


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **LAYOUTS["gzip"])
    whole = path.read_bytes()
    (tmp_path / "text.h5").write_text("no")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "ragged.h5", "w") as handle:
        handle["image"], handle["label"] = np.zeros((4, 2)), np.zeros(3)
        handle["pair"] = np.zeros(3, dtype=[("a", "i4"), ("b", "f4")])
        handle["link"] = h5py.SoftLink("/nowhere")
        handle["wide"] = np.zeros(2, dtype=np.longdouble)
    cases = [
        ("none.h5", {}, "no such HDF5 file"),
        ("text.h5", {}, "is no HDF5 file"),
        ("empty.h5", {}, "is no HDF5 file"),
        ("cut.h5", {}, "can't be opened.*truncated"),
        ("a.h5", {"fields": ("imagee",)}, "no dataset 'imagee'.*did you mean 'image'"),
        ("ragged.h5", {"fields": ("image", "label")}, "differ in length.*image: 4, label: 3"),
        ("ragged.h5", {"fields": "pair"}, "compound"),
        ("ragged.h5", {"fields": "link"}, "no dataset 'link'"),
        ("ragged.h5", {"fields": "wide"}, "unknown to torch"),
        ("a.h5", {"max_sample_bytes": 100}, "too large"),
    ]
    for name, options, problem in cases:
        with pytest.raises(DataError, match=f"(?s){name}.*{problem}|(?s:{problem})") as caught:
            H5Dataset(tmp_path / name, **options)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="are not those of"):
        H5Dataset([path, tmp_path / "ragged.h5"], "image")


def test_a_header_that_claims_too_much_allocates_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle.create_dataset("image", (1 << 40, 1 << 12, 1 << 12), "f8", chunks=(1, 64, 64), compression="gzip")
    with pytest.raises(DataError, match="larger|too large"):
        H5Dataset(tmp_path / "a.h5", "image", max_sample_bytes=1 << 20)
    data = H5Dataset(tmp_path / "a.h5", "image", patch=(4, 4), max_sample_bytes=1 << 50)
    assert len(data) == 1 << 20  # patches of all rows at once
    with pytest.raises(DataError, match="too large"):
        H5Dataset(tmp_path / "a.h5", "image", patch=(4, 4))


@pytest.mark.parametrize("layout", ["gzip", "gzip tiles", "chunked", "contiguous", "checksum"])
def test_damaged_data_is_an_error_and_no_crash(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "f4", **LAYOUTS[layout])
    with h5py.File(path) as handle:
        dataset = handle["image"].id
        at = dataset.get_offset() if layout == "contiguous" else dataset.get_chunk_info(0).byte_offset
    data = H5Dataset(path)
    content = bytearray(path.read_bytes())
    if layout in ("contiguous", "chunked"):
        path.write_bytes(content[: at + 100])  # truncated after its header was read
        rows = [99]
    else:
        content[at : at + 40] = bytes(range(40))
        path.write_bytes(content)
        rows = [0]
    with pytest.raises(DataError, match="a.h5"):
        data.__getitems__(rows)


def test_a_chunk_that_unpacks_to_more_than_it_should(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        made = handle.create_dataset("image", (8, 16), "u1", chunks=(8, 16), compression="gzip")
        made.id.write_direct_chunk((0, 0), zlib.compress(bytes(100_000)))
    with pytest.raises(DataError, match="129 bytes, wanted 128"):
        H5Dataset(tmp_path / "a.h5", "image")[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"paths": []}, "needs a file"),
        ({"fields": ()}, "needs a field"),
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"threads": 0}, "threads"),
        ({"slices": (3,)}, "slices"),
        ({"slices": (slice(None), slice(0, 4, 2))}, "steps of 1"),
        ({"stride": (2,)}, "stride"),
        ({"patch": (2, 2), "stride": (2,)}, "patch"),
        ({"patch": (0, 2)}, "patch"),
        ({"patch": (2,), "slices": (slice(None), slice(2))}, "exclude"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        H5Dataset(**{"paths": write(tmp_path / "a.h5"), **options})


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"'h5py'.*\[data\]"):
        H5Dataset(path)


def test_torchs_names_are_beside_ours() -> None:
    assert importlib.import_module("deepseek.utils.data") is ds.utils.data
    assert ds.utils.data.DataLoader is torch.utils.data.DataLoader and ds.utils.data.H5Dataset is H5Dataset
    assert issubclass(H5Dataset, torch.utils.data.Dataset)
