"""NVIDIA: driver, GPUs and NVLink as `nvidia-smi` shows them, held against what torch was built for.

Sources: `nvidia-smi --help-query-gpu`; minor-version compatibility from CUDA 11 on, as NVIDIA's
"CUDA Compatibility" guide states it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, numbers, ok, problem, warning
from deepseek.utils.check_env.machine import Machine
from deepseek.utils.check_env.torch_facts import TorchFacts

QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,driver_version,memory.total,compute_cap",
    "--format=csv,noheader,nounits",
)


def nvidia(machine: Machine, facts: TorchFacts) -> Iterator[Finding]:
    """Everything about NVIDIA's GPUs; nothing where their driver's tool is absent."""
    rows = [[cell.strip() for cell in line.split(",")] for line in machine.output(*QUERY).splitlines()]
    rows = [row for row in rows if len(row) == 5]
    if not rows:
        if machine.which("nvidia-smi") is not None:
            yield _broken_driver(machine)
        return
    yield ok("GPU", "NVIDIA GPUs", _gpu_list(rows))
    header = machine.output("nvidia-smi")
    supported = re.search(r"CUDA Version:\s*([\d.]+)", header)
    yield from _driver(rows[0][2], supported[1] if supported else "", facts)
    yield from _usable(rows, facts)
    yield from _architectures(facts)
    yield from _toolkit(machine, facts)
    yield from _nccl(facts)
    yield from _links(machine, len(rows))


def _gpu_list(rows: list[list[str]]) -> str:
    names: dict[str, int] = {}
    for _, name, _, memory, capability in rows:
        shown = (
            f"{name} ({int(float(memory)) / 1024:.0f} GiB, compute capability {capability})"
            if _number(memory)
            else name
        )
        names[shown] = names.get(shown, 0) + 1
    return "; ".join(f"{count} x {name}" for name, count in names.items())


def _number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _broken_driver(machine: Machine) -> Finding:
    result = machine.run(["nvidia-smi"], 20.0)
    message = "no answer" if result is None else " ".join((result.out + result.err).split())[:160]
    return problem(
        "GPU",
        "NVIDIA driver",
        f"nvidia-smi finds no GPU: {message or 'no output'}",
        why="the driver is not loaded, or its parts are of different versions",
        fix=f"{machine.root_prefix()}modprobe nvidia  (after an update of the driver: {machine.root_prefix()}reboot)",
    )


def _driver(driver: str, supported: str, facts: TorchFacts) -> Iterator[Finding]:
    found = f"driver {driver}" + (f", up to CUDA {supported}" if supported else "")
    if facts.cuda and supported and numbers(facts.cuda)[0] > numbers(supported)[0]:
        yield problem(
            "GPU",
            "NVIDIA driver",
            f"{found}; torch is built for CUDA {facts.cuda}",
            why="a driver runs builds of its own CUDA generation or an older one",
            fix=f"update the driver to one for CUDA {numbers(facts.cuda)[0]} (or install torch for CUDA {supported})",
        )
    else:
        yield ok("GPU", "NVIDIA driver", found + (f"; torch is built for CUDA {facts.cuda}" if facts.cuda else ""))


def _usable(rows: list[list[str]], facts: TorchFacts) -> Iterator[Finding]:
    if facts.error is not None:
        return
    if facts.cuda is None:
        yield problem(
            "GPU",
            "torch on GPU",
            f"torch {facts.version} is not built for CUDA",
            why=f"{len(rows)} GPU(s) would stand idle",
            fix="pip uninstall -y torch && pip install torch  (without a constraint on the CPU build)",
        )
    elif not facts.gpus:
        yield problem(
            "GPU",
            "torch on GPU",
            "torch can't use the GPUs" + (f": {facts.gpu_error}" if facts.gpu_error else ""),
            why="CUDA_VISIBLE_DEVICES hides them, the container was started without them, or the driver is too old",
            fix="unset CUDA_VISIBLE_DEVICES  (in a container: docker run --gpus all ...)",
        )
    elif len(facts.gpus) < len(rows):
        yield warning(
            "GPU",
            "torch on GPU",
            f"torch sees {len(facts.gpus)} of {len(rows)} GPUs",
            why="the others stand idle",
            fix="unset CUDA_VISIBLE_DEVICES",
        )
    else:
        yield ok("GPU", "torch on GPU", f"torch sees {len(facts.gpus)} GPU(s)")


def _architectures(facts: TorchFacts) -> Iterator[Finding]:
    """A build serves a GPU by code for the same major and an equal or older minor, or by PTX it compiles at start."""
    for name, capability in sorted(
        {(name, tuple(cap)) for name, cap in zip(facts.gpus, facts.capabilities, strict=False)}
    ):
        built = [
            (kind, int(digits)) for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(facts.architectures))
        ]
        native = any(
            kind == "sm" and code // 10 == capability[0] and code % 10 <= capability[1] for kind, code in built
        )
        portable = any(kind == "compute" and (code // 10, code % 10) <= capability for kind, code in built)
        if facts.cuda and built and not native and not portable:
            yield problem(
                "GPU",
                "GPU architecture",
                f"{name} is sm_{capability[0]}{capability[1]}; torch is built for {' '.join(facts.architectures)}",
                why="torch has no code for this GPU; the first kernel fails",
                fix=f"install a torch build that lists sm_{capability[0]}{capability[1]} (torch.cuda.get_arch_list())",
            )


def _toolkit(machine: Machine, facts: TorchFacts) -> Iterator[Finding]:
    release = re.search(r"release ([\d.]+)", machine.output("nvcc", "--version"))
    if release is None or not facts.cuda:
        return
    if numbers(release[1])[0] != numbers(facts.cuda)[0]:
        yield warning(
            "GPU",
            "CUDA toolkit",
            f"nvcc {release[1]}; torch is built for CUDA {facts.cuda}",
            why="extensions compiled with this nvcc don't load into this torch; training itself does not use it",
            fix=f"install the CUDA {numbers(facts.cuda)[0]} toolkit and put its bin folder first on PATH",
        )
    else:
        yield ok("GPU", "CUDA toolkit", f"nvcc {release[1]}")


def _nccl(facts: TorchFacts) -> Iterator[Finding]:
    if not facts.nccl_built:
        return
    built = ".".join(map(str, facts.nccl_built))
    loaded = ".".join(map(str, facts.nccl_loaded)) if facts.nccl_loaded else built
    if loaded != built:
        yield warning(
            "GPU",
            "NCCL",
            f"{loaded} is loaded; torch is built for {built}",
            why="another NCCL comes first on the library path; collectives can hang or fail",
            fix="unset LD_PRELOAD LD_LIBRARY_PATH  (or: pip install --force-reinstall torch)",
        )
    else:
        yield ok("GPU", "NCCL", loaded)


def _links(machine: Machine, gpus: int) -> Iterator[Finding]:
    if gpus < 2:
        return
    status = machine.output("nvidia-smi", "nvlink", "--status")
    speeds = re.findall(r"Link \d+: ([\d.]+) GB/s", status)
    inactive = len(re.findall(r"Link \d+: <?inactive>?", status, re.IGNORECASE))
    if inactive:
        yield warning(
            "GPU",
            "NVLink",
            f"{len(speeds)} links up, {inactive} down",
            why="gradients between these GPUs take the slower way over PCIe",
            fix="nvidia-smi nvlink --errorcounters  (then reseat the bridge or restart the fabric manager)",
        )
    elif speeds:
        yield ok("GPU", "NVLink", f"{len(speeds)} links, {sum(map(float, speeds)):.0f} GB/s in all")
    else:
        yield ok("GPU", "NVLink", "none; the GPUs talk over PCIe")
