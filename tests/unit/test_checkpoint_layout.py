"""The safetensors files of a checkpoint: laid out so that the library reads them, and hostile ones refused at once."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file

from deepseek.checkpoint.layout import ITEM_BYTES, PAGE, TensorSpec, memory_needed, plan_files, read_slots
from deepseek.errors import CheckpointError

specs = st.lists(
    st.builds(
        TensorSpec,
        st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.sampled_from(sorted(set(ITEM_BYTES) - {"F8_E8M0"})),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda spec: spec.name,
)


@given(specs)
def test_the_library_reads_every_file_that_is_planned(wanted: list[TensorSpec]) -> None:
    (file,) = plan_files(wanted)
    found = load(file.header + bytes(file.size - len(file.header)))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {one.name: one.shape for one in wanted}
    assert all(slot.begin % ITEM_BYTES[slot.spec.dtype] == 0 for slot in file.slots)


def test_a_large_state_is_split_into_files_that_share_no_memory() -> None:
    wanted = [TensorSpec(f"layer.{index}", "F32", (1 << 20,)) for index in range(100)]
    files = plan_files(wanted)
    assert len(files) > 4 and sorted(slot.spec for file in files for slot in file.slots) == sorted(wanted)
    for file, following in zip(files, files[1:], strict=False):
        assert file.start % PAGE == 0 and file.start + file.size <= following.start
    assert memory_needed(files) < 100 * (4 << 20) + len(files) * (PAGE + 4096)


def test_offsets_are_those_of_the_library(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int8), "c": torch.empty(0, 4)}
    save_file(state, tmp_path / "state.safetensors")
    data = (tmp_path / "state.safetensors").read_bytes()
    header, slots = read_slots(tmp_path / "state.safetensors")
    for slot in slots:
        tensor = state[slot.spec.name]
        assert data[slot.begin : slot.end] == tensor.numpy().tobytes() and slot.spec.shape == tuple(tensor.shape)
    assert header == min(slot.begin for slot in slots) and len(slots) == 3


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE: dict[str, Any] = {
    "overlapping tensors": {"a": entry(), "b": entry(offsets=(4, 12))},
    "a gap": {"a": entry(), "b": entry(offsets=(12, 20))},
    "past the end": {"a": entry(shape=(1000,), offsets=(0, 4000))},
    "bytes of no tensor": {"a": entry(shape=(1,), offsets=(0, 4))},
    "a negative length": {"a": entry(shape=(-2,), offsets=(0, -8))},
    "offsets the wrong way round": {"a": entry(offsets=(8, 0))},
    "NaN for a length": {"a": entry(shape=(float("nan"),))},
    "infinity for an offset": {"a": entry(offsets=(0, float("inf")))},
    "a length like 1e400": {"a": entry(shape=(1e400,))},
    "a fraction": {"a": entry(offsets=(0, 8.0))},
    "true for a length": {"a": entry(shape=(True, 2))},
    "a product beyond 64 bits": {"a": entry(shape=(1 << 40, 1 << 40, 0), offsets=(0, 8))},
    "an unknown dtype": {"a": entry(dtype="F4")},
    "a dtype that is a list": {"a": entry(dtype=["F32"])},
    "a shape that is text": {"a": entry(shape="22")},
    "three offsets": {"a": entry(offsets=(0, 4, 8))},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "an entry that is a number": {"a": 3},
    "a list": [1, 2],
    "a number": 7,
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused(header: Any, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        read_slots(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        (10 << 30).to_bytes(8, "little") + b"{}",
        ((1 << 64) - 1).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (35).to_bytes(8, "little") + b'{"a":{"dtype":"U8"},"a":{"shape":1}}',
        b"\x80\x04\x95 pickle here" + b"\0" * 40,
    ],
    ids=["0 bytes", "7 bytes", "header of 10 GB", "header of 2^64", "no UTF-8", "deep", "a name twice", "pickle"],
)
def test_what_is_no_header_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        read_slots(tmp_path / "x.safetensors")


def test_a_file_that_really_has_a_header_of_10_gb_costs_no_memory(tmp_path: Path) -> None:
    with open(tmp_path / "x.safetensors", "wb") as handle:
        handle.write((10 << 30).to_bytes(8, "little"))
        handle.truncate((10 << 30) + 8)  # no block of it is on the disk
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="header of 10737418240 bytes"):
            read_slots(tmp_path / "x.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        read_slots(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "none.safetensors")
