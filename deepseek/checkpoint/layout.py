"""Where each tensor of a checkpoint lies: files in the safetensors format, planned before writing, checked when read.

The format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes with the length of the header, a JSON header
with dtype, shape and offsets of each tensor, then the bytes of all tensors without gaps. A large state is split over
several files, so that hashing, writing and reading them run side by side.
Free of torch: the writer process imports it. Not here: moving bytes (`commit.py`, `reader.py`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.errors import CheckpointError

PAGE = 4096
"""Bytes; files begin at multiples of it in memory, so that they can be written past the system's cache."""

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
}
"""Bytes of one element by the format's dtype names."""

_SMALLEST_FILE, _LARGEST_FILE = 32 << 20, 512 << 20
_FILES = 6
_HEADER_LIMIT = 100_000_000  # the format's own
_OLDER = "resume from an older checkpoint"


class TensorSpec(NamedTuple):
    """Name, dtype (as the format calls it) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor, contiguous."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Slot(NamedTuple):
    """A tensor's place: bytes `begin` to `end` of its file, header included."""

    spec: TensorSpec
    begin: int
    end: int


@dataclass(frozen=True)
class FileLayout:
    """One file: its header, and its tensors in order. `start` is where it begins in the memory that holds all files."""

    name: str
    start: int
    header: bytes
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.slots[-1].end if self.slots else len(self.header)


def plan_files(specs: Sequence[TensorSpec]) -> tuple[FileLayout, ...]:
    """Return the files for these tensors: one up to 32 MiB, else about six; a tensor stays whole."""
    total = sum(spec.bytes for spec in specs)
    limit = min(max(total // _FILES, _SMALLEST_FILE), _LARGEST_FILE)
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.bytes // 2 > limit:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.bytes
    files: list[FileLayout] = []
    start = 0
    for number, group in enumerate(groups, 1):
        name = "state.safetensors" if len(groups) == 1 else f"state-{number:05d}-of-{len(groups):05d}.safetensors"
        files.append(_plan_file(name, start, group))
        start += round_up(files[-1].size, PAGE)
    return tuple(files)


def memory_needed(files: Sequence[FileLayout]) -> int:
    """Return the bytes of memory that hold all files, whole pages each."""
    return files[-1].start + round_up(files[-1].size, PAGE)


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def _plan_file(name: str, start: int, specs: Iterable[TensorSpec]) -> FileLayout:
    """Lay tensors one behind the other, the widest elements first, so that each lies at a multiple of its own."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    placed = []
    offset = 0
    for spec in sorted(specs, key=lambda spec: -ITEM_BYTES[spec.dtype]):
        end = offset + spec.bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        placed.append((spec, offset, end))
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 8) % 64)
    header = len(text).to_bytes(8, "little") + text
    slots = tuple(Slot(spec, len(header) + begin, len(header) + end) for spec, begin, end in placed)
    return FileLayout(name, start, header, slots)


def read_slots(path: Path) -> tuple[int, tuple[Slot, ...]]:
    """Return (bytes of the header, tensors in the order they lie) of a safetensors file, every number checked.

    Nothing larger than the file itself says it is gets allocated. Raises CheckpointError for a header that is longer
    than the file, not JSON or not of the format, and for tensors that overlap, leave gaps or reach past the end.
    """
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise _broken(path, f"a header of {length} bytes in a file of {size}")
            entries = json.loads(handle.read(length), object_pairs_hook=_no_name_twice)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read", found=error.strerror, fix=_OLDER) from error
    except (ValueError, RecursionError):
        raise _broken(path, "no JSON") from None
    if not isinstance(entries, dict):
        raise _broken(path, "no table")
    entries.pop("__metadata__", None)
    begin = 8 + length
    slots = sorted((_slot(path, name, entry, begin) for name, entry in entries.items()), key=lambda slot: slot[1:])
    position = begin
    for slot in slots:
        if slot.begin != position:
            kind = "overlaps the tensor before it" if slot.begin < position else "leaves a gap before it"
            raise _broken(path, f"tensor '{slot.spec.name}' {kind}")
        position = slot.end
    if position > size or (position < size and slots):
        raise _broken(path, f"tensors up to byte {position} in a file of {size}")
    return begin, tuple(slots)


def _slot(path: Path, name: str, entry: Any, data: int) -> Slot:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        sound = dtype in ITEM_BYTES and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise _broken(path, f"tensor '{name}' is described as {str(entry)[:200]}")
    spec = TensorSpec(name, dtype, tuple(shape))
    if spec.bytes != end - begin:
        raise _broken(path, f"tensor '{name}' of {end - begin} bytes for {spec.dtype} {list(spec.shape)}")
    return Slot(spec, data + begin, data + end)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _broken(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"{path} is no sound safetensors file: {found}", fix=_OLDER)
