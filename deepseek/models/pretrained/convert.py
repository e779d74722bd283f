"""Pickled weights to safetensors: `python -m deepseek.models.pretrained.convert FOLDER`.

A pickle can hold code. It is opened in a child process alone, with torch's `weights_only` loader, which builds tensors
and plain values and nothing else, and with limits on memory, time and what is written. The result is checked, then
moved into place whole. The pickled files stay where they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepseek.errors import DeepSeekError, ModelError
from deepseek.files import atomic_path, write_json
from deepseek.models.pretrained.store import INDEX, PICKLED, SINGLE, listed, read_index

_MODULE = "deepseek.models.pretrained.convert"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")
_EXTRA_MEMORY = 1 << 30
_SECONDS = 300.0  # for any file; one more for each 10 MB


def convert(folder: str | Path) -> list[Path]:
    """Write safetensors beside the pickled weights in `folder`; return the files written.

    Raises ModelError for a folder without pickled weights or with safetensors already, and for files that hold more
    than tensors, are damaged, or need more memory or time than their size explains.
    """
    folder = Path(folder)
    for name in (SINGLE, INDEX):
        if (folder / name).exists():
            raise ModelError(f"{folder} has safetensors already", found=name, fix="use it, or remove it first")
    if not (folder / _PICKLED_INDEX).is_file():
        _convert_file(_single_file(folder), folder / SINGLE)
        return [folder / SINGLE]
    weight_map = read_index(folder / _PICKLED_INDEX, ".bin")
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks shards that {_PICKLED_INDEX} names", found=listed(missing))
    renamed = {file: f"model-{n:05d}-of-{len(files):05d}.safetensors" for n, file in enumerate(files, 1)}
    for file in files:
        _convert_file(folder / file, folder / renamed[file], {name for name, f in weight_map.items() if f == file})
    size = sum((folder / file).stat().st_size for file in renamed.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: renamed[f] for name, f in weight_map.items()}}
    write_json(folder / INDEX, index)  # last: until then the folder has no safetensors for a reader
    return [*(folder / file for file in renamed.values()), folder / INDEX]


def _single_file(folder: Path) -> Path:
    if (folder / PICKLED[0]).is_file():
        return folder / PICKLED[0]
    found = sorted({path for pattern in PICKLED for path in folder.glob(pattern) if path.name not in _NO_WEIGHTS})
    if len(found) != 1:
        raise ModelError(
            f"{folder} has no pickled weights" if not found else f"{folder} has several pickled files",
            found=listed([path.name for path in found]) or "none",
            wanted=f"{PICKLED[0]}, or one file that ends in .bin, .pt, .pth or .ckpt",
        )
    return found[0]


def _convert_file(source: Path, target: Path, names: set[str] | None = None) -> None:
    """Convert one file in a child process; `names` must be among its tensors."""
    seconds = _SECONDS + source.stat().st_size / 1e7
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    with atomic_path(target) as temporary:
        command = [sys.executable, "-m", _MODULE, "--child", str(source.resolve()), str(temporary.resolve())]
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise _refused(source, f"not done after {seconds:.0f} seconds") from None
        if child.returncode != 0:
            raise _refused(source, _last_line(child.stderr) or f"the child process ended with {child.returncode}")
        try:
            with safe_open(temporary, framework="pt") as written:
                lacking = sorted((names or set()) - set(written.keys()))
        except (SafetensorError, OSError) as error:
            raise _refused(source, str(error)) from error
        if lacking:
            raise _refused(source, f"it lacks {listed(lacking)}, which the index names")


def _refused(source: Path, reason: str) -> ModelError:
    return ModelError(
        f"{source} can't be converted",
        found=reason[:300],
        wanted="a state dict: names and tensors, nothing else",
        fix="take the checkpoint as safetensors from its publisher",
    )


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return "".join(letter for letter in lines[-1] if letter.isprintable()) if lines else ""


def _child(source: Path, target: Path) -> None:
    """Do the work in the child: load within limits, write."""
    _limit(source.stat().st_size)
    content: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    save_file(_plain(content), target, metadata={"format": "pt"})


def _plain(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, dense and each with memory of its own."""
    if not isinstance(content, dict) or not content:
        raise ModelError("not a state dict", found=type(content).__name__)
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ModelError(f"{name!r} is no tensor", found=type(tensor).__name__)
        storage = tensor.untyped_storage().data_ptr()
        shared = storage in storages or not tensor.is_contiguous() or tensor.nbytes != tensor.untyped_storage().nbytes()
        storages.add(storage)
        tensor = tensor.detach()
        state[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor
    return state


def _limit(size: int) -> None:
    """Bound this process by the size of its input, where the system can (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    seconds = int(_SECONDS + size / 1e7)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: 2 * size + (1 << 20)}
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + 4 * size + _EXTRA_MEMORY
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


@contextlib.contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a foreign file makes the loader say
        first = (str(error).strip().splitlines() or [""])[0]
        raise SystemExit(f"{type(error).__name__}: {first}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.models.pretrained.convert", description=convert.__doc__)
    parser.add_argument("folder", type=Path, help="the folder with pytorch_model.bin (or shards and their index)")
    parser.add_argument("target", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    values = parser.parse_args(arguments)
    if values.child:
        with _errors_as_one_line():
            _child(values.folder, values.target)
        return 0
    try:
        written = convert(values.folder)
    except DeepSeekError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps([str(path) for path in written]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
