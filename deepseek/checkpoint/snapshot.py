"""A copy of a state at one moment, in memory that a writer reads: all that training waits for.

Where each tensor goes is planned once and kept while names, dtypes and shapes stay. Tensors of a GPU are copied by
a stream of their own into pinned memory: the CPU does not wait, and the GPU's next update waits for the copy alone.
Measured for 1.5 GB on two cores: this copy 0.05 s; a fork that shares pages (copy on write) 0.07 s, but then every
page that the next update writes to is copied by a page fault, 3.3 s of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepseek.checkpoint.commit import FileJob, Source
from deepseek.checkpoint.dtypes import as_bytes, from_bytes, spec_of
from deepseek.checkpoint.layout import FileLayout, TensorSpec, memory_needed, plan_files
from deepseek.checkpoint.manifest import TensorRecord
from deepseek.checkpoint.sharded import full, is_sharded
from deepseek.checkpoint.shared_memory import SharedMemory
from deepseek.checkpoint.tree import split_tree


@dataclass(frozen=True)
class Contents:
    """A state taken apart: plain values, each tensor once, and tied tensors by the name each is kept under."""

    plain: Any
    tensors: dict[str, Tensor]
    aliases: dict[str, str]


def take_apart(state: dict[str, Any]) -> Contents:
    """Return the parts of a state tree. Raises CheckpointError naming what a checkpoint can't hold."""
    plain, found = split_tree(state)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in found.items():
        same = first.setdefault(_identity(name, tensor), name)
        if same == name:
            tensors[name] = tensor
        else:
            aliases[name] = same
    return Contents(plain, tensors, aliases)


def _identity(name: str, tensor: Tensor) -> Any:
    """Return what tied tensors have in common; the name for those that no other can share memory with."""
    if tensor.layout != torch.strided or tensor.device.type == "meta" or is_sharded(tensor) or not tensor.numel():
        return name
    look = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return tensor.data_ptr(), tensor.device, look


@dataclass
class Plan:
    """Where the tensors of a state go."""

    specs: tuple[TensorSpec, ...]
    files: tuple[FileLayout, ...]
    places: list[Tensor] = field(default_factory=list)
    """For each spec, the tensor over its place in memory."""

    @property
    def size(self) -> int:
        """Bytes of memory for all files."""
        return memory_needed(self.files)

    def records(self) -> dict[str, TensorRecord]:
        """Return the tensors as a manifest names them."""
        return {
            slot.spec.name: TensorRecord(file.name, slot.spec.dtype, slot.spec.shape)
            for file in self.files
            for slot in file.slots
        }

    def jobs(self) -> tuple[FileJob, ...]:
        """Return the files as the writer needs them."""
        return tuple(
            FileJob(file.name, file.start, file.size, tuple((slot.end, slot.spec.name) for slot in file.slots))
            for file in self.files
        )


def plan_for(tensors: dict[str, Tensor], earlier: Plan | None) -> Plan:
    """Return where the tensors go, the earlier plan where it still fits. Raises CheckpointError naming a tensor."""
    specs = tuple(spec_of(name, tensor) for name, tensor in tensors.items())
    if earlier is not None and earlier.specs == specs:
        return earlier
    return Plan(specs, plan_files(specs))


class Snapshot:
    """Memory that holds the state as it will be on disk, header and all."""

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self._plan: Plan | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pinned: tuple[int, int] | None = None

    def make_room(self, plan: Plan) -> None:
        """Have memory for `plan`; headers are written, pages are not fetched."""
        if self._plan is plan:
            return
        memory = memoryview(self.memory.reserve(plan.size))
        by_name = {}
        for file in plan.files:
            memory[file.start : file.start + len(file.header)] = file.header
            for slot in file.slots:
                place = memory[file.start + slot.begin : file.start + slot.end]
                by_name[slot.spec.name] = from_bytes(place, slot.spec)
        plan.places = [by_name[spec.name] for spec in plan.specs]
        self._plan = plan

    def copy(self, plan: Plan, tensors: dict[str, Tensor], keep: bool) -> Callable[[], None]:
        """Copy the tensors; return what waits until copies from GPUs have arrived. Sharded ones are gathered.

        Without `keep` this rank takes part in gathering and keeps nothing.
        """
        on_gpu: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        with torch.no_grad():
            for index, (name, tensor) in enumerate(tensors.items()):
                whole = full(name, tensor)
                if not keep:
                    continue
                if whole.device.type == "cuda":
                    on_gpu.setdefault(whole.device, []).append((plan.places[index], whole))
                else:
                    plan.places[index].copy_(whole)
            events = [self._copy_from_gpu(device, pairs) for device, pairs in on_gpu.items()]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return wait

    def _copy_from_gpu(self, device: torch.device, pairs: list[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        self._pin()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for place, tensor in pairs:
                place.copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
        event: torch.cuda.Event = stream.record_event()
        current.wait_event(event)  # or the next update would change what is being copied
        return event

    def _pin(self) -> None:
        """Pin the memory for GPUs: copies into other memory are slow, and the CPU waits for them."""
        if self.memory.map is None:
            return
        address = torch.frombuffer(self.memory.map, dtype=torch.uint8).data_ptr()
        if self._pinned != (address, self.memory.size):
            self._unpin()
            cudart: Any = torch.cuda.cudart
            torch.cuda.check_error(cudart().cudaHostRegister(address, self.memory.size, 0))
            self._pinned = (address, self.memory.size)

    def _unpin(self) -> None:
        if self._pinned is not None:
            cudart: Any = torch.cuda.cudart
            cudart().cudaHostUnregister(self._pinned[0])
            self._pinned = None

    def close(self) -> None:
        """Give the memory back."""
        self._unpin()
        self._plan = None
        self.memory.close()


def tensor_source(plan: Plan, tensors: dict[str, Tensor]) -> Source:
    """Return the source that reads each tensor from where it is: no second copy of the state, but training waits."""
    files = {file.name: file for file in plan.files}

    def pieces(job: FileJob) -> Iterator[memoryview]:
        file = files[job.name]
        yield memoryview(file.header)
        for slot in file.slots:
            if slot.begin < slot.end:
                yield as_bytes(tensors[slot.spec.name])

    return Source(pieces)
