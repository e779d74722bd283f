"""One contestant of `checkpoint`: a GPT's state with Adam saved a few times and loaded, in one process.

`python -m benchmarks.children.checkpoint_run NAME SHARE RESULT`. SHARE 1 is 124M parameters, 1.5 GB with Adam's two
averages in float32; names and shapes are GPT-2's, values random. Before each save the state changes as training
changes it. What was saved is loaded into memory that is there, as a resumed run does, and compared bit by bit.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAVES = 3
State = dict[str, dict[str, Tensor]]


def nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Contestant:
    """`save(path, state)` returns when training may go on, `finish` when all is written; `load` undoes it."""

    save: Callable[[Path, State], None]
    load: Callable[[Path], State]
    finish: Callable[[], None] = nothing
    prepare: Callable[[State], None] = nothing
    """Done once, while the first steps run."""
    close: Callable[[], None] = nothing


def gpt_state(share: float) -> State:
    """Return weights and Adam's averages; `share` of the layers and of the vocabulary of GPT-2, a toy below 0.05."""
    width, layers, vocabulary = 768 if share >= 0.05 else 32, max(1, round(12 * share)), round(50257 * share)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width), "wpe.weight": (1024, width)}
    for layer in range(layers):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"h.{layer}.{name}"] = shape
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    parts = ("model", "exp_avg", "exp_avg_sq")
    return {part: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for part in parts}


def tensors_of(state: State) -> list[Tensor]:
    """Return all tensors in a fixed order."""
    return [state[part][name] for part in sorted(state) for name in sorted(state[part])]


def ours(folder: Path) -> Contestant:
    """`CheckpointStore`, asynchronous, as a run uses it."""
    from deepseek.checkpoint.store import CheckpointStore, load_checkpoint

    store = CheckpointStore(folder / "checkpoints", keep_last=100)
    return Contestant(
        save=lambda path, state: store.save(0, state, path=path),
        load=load_checkpoint,
        finish=store.wait,
        prepare=store.prepare,
        close=store.close,
    )


def torch_save(folder: Path) -> Contestant:
    """`torch.save`, loaded without a copy (`mmap`)."""
    return Contestant(
        save=lambda path, state: torch.save(state, path),
        load=lambda path: torch.load(path, mmap=True, weights_only=True),
    )


def safetensors(folder: Path) -> Contestant:
    """`safetensors.torch.save_file`, which does not sync to the disk."""
    from safetensors.torch import load_file, save_file

    def save(path: Path, state: State) -> None:
        save_file({f"{part}/{name}": tensor for part in state for name, tensor in state[part].items()}, path)

    def load(path: Path) -> State:
        found: State = {}
        for name, tensor in load_file(path).items():
            part, _, rest = name.partition("/")
            found.setdefault(part, {})[rest] = tensor
        return found

    return Contestant(save, load)


def safetensors_synced(folder: Path) -> Contestant:
    """The same, synced: then it is as safe from a power cut as ours."""
    plain = safetensors(folder)

    def save(path: Path, state: State) -> None:
        plain.save(path, state)
        sync(path)

    return Contestant(save, plain.load)


def dcp(folder: Path) -> Contestant:
    """`torch.distributed.checkpoint.save`, one writing thread a core."""
    import torch.distributed.checkpoint as dcp_module

    def save(path: Path, state: State) -> None:
        writer = dcp_module.FileSystemWriter(path, thread_count=torch.get_num_threads(), sync_files=False)
        dcp_module.save(dict(state), storage_writer=writer, no_dist=True)

    return Contestant(save, lambda path: load_dcp(path))


def dcp_async(folder: Path) -> Contestant:
    """`torch.distributed.checkpoint.async_save`, its copy of the state kept in shared memory between saves."""
    import torch.distributed.checkpoint as dcp_module
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    )
    stager = DefaultStager(options)
    running: list[Any] = []

    def save(path: Path, state: State) -> None:
        writer = dcp_module.FileSystemWriter(path, thread_count=torch.get_num_threads(), sync_files=False)
        running.append(dcp_module.async_save(dict(state), storage_writer=writer, async_stager=stager, no_dist=True))

    def finish() -> None:
        running.pop().result()

    return Contestant(save, load_dcp, finish, close=stager.close)


def load_dcp(path: Path) -> State:
    """Load a checkpoint of torch.distributed into new memory."""
    import torch.distributed.checkpoint as dcp_module

    metadata = dcp_module.FileSystemReader(path).read_metadata().state_dict_metadata
    flat = {name: torch.empty(entry.size) for name, entry in metadata.items()}
    dcp_module.load(flat, storage_reader=dcp_module.FileSystemReader(path), no_dist=True)
    found: State = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = tensor
    return found


CONTESTANTS: dict[str, Callable[[Path], Contestant]] = {
    "ours": ours,
    "torch.save": torch_save,
    "safetensors": safetensors,
    "safetensors, synced": safetensors_synced,
    "dcp.save": dcp,
    "dcp.async_save": dcp_async,
}


def run(name: str, share: float) -> dict[str, Any]:
    """Return seconds of copies, saves and loads, and how many tensors came back other than they were."""
    state = gpt_state(share)
    tensors = tensors_of(state)
    expected = [tensor.clone() for tensor in tensors]  # also the memory that the reference copies into
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=os.environ.get("DEEPSEEK_BENCH_FOLDER")) as place:
        folder = Path(place)
        contestant = CONTESTANTS[name](folder)
        contestant.prepare(state)
        time.sleep(10 * share)  # the first steps of a run
        copies, blocked, total = [], [], []
        for number in range(SAVES + 1):
            for tensor in tensors:
                tensor.add_(1e-3)
            start = time.perf_counter()
            for place_, tensor in zip(expected, tensors, strict=True):
                place_.copy_(tensor)
            copies.append(time.perf_counter() - start)
            path = folder / f"saved-{number}"
            start = time.perf_counter()
            contestant.save(path, state)
            blocked.append(time.perf_counter() - start)
            contestant.finish()
            total.append(time.perf_counter() - start)
            if number < SAVES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        warm, cold = (timed_load(contestant, path, tensors, cold) for cold in (False, True))
        wrong = sum(not torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
        contestant.close()
    details = {
        "first_blocked_s": blocked[0],
        "first_total_s": total[0],
        "blocked_s": statistics.median(blocked[1:]),
        "total_s": statistics.median(total[1:]),
        "copy_s": statistics.median(copies[1:]),
        "blocked_per_copy": statistics.median(b / c for b, c in zip(blocked[1:], copies[1:], strict=True)),
        "load_warm_s": warm,
        "load_cold_s": cold,
        "gigabytes": sum(tensor.nbytes for tensor in tensors) / 1e9,
    }
    return {"value": details["total_s"], "outputs": {"wrong_tensors": float(wrong)}, "details": details}


def timed_load(contestant: Contestant, path: Path, tensors: list[Tensor], cold: bool) -> float:
    """Return the seconds to load `path` and copy it into `tensors`; `cold`: the system's cache holds nothing of it."""
    for tensor in tensors:
        tensor.zero_()
    sync(path)
    if cold:
        for file in files_of(path):
            with suppress(AttributeError), open(file, "rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    found = contestant.load(path)
    for target, tensor in zip(tensors, tensors_of(found), strict=True):
        target.copy_(tensor)
    return time.perf_counter() - start


def sync(path: Path) -> None:
    """Sync a file, or those of a folder, to the disk."""
    for file in files_of(path):
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())


def files_of(path: Path) -> list[Path]:
    """Return the file, or the files of the folder."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(run(sys.argv[1], float(sys.argv[2]))))
