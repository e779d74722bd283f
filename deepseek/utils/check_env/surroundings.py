"""What surrounds the process: disks, ports, open files, and the container or cluster it runs in."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, gib, ok, problem, warning
from deepseek.utils.check_env.machine import Machine

GIB = 2**30
LEAST_OPEN_FILES = 1024
PORTS = {
    8080: ("port 8080", "the server's", "deepseek serve BUNDLE --port {free}"),
    29500: ("port 29500", "distributed training's", "export MASTER_PORT={free}"),
}

_ROOM = {
    "working folder": ("runs and checkpoints are written here", "work in another folder: df -h lists the disks"),
    "home": ("token caches are kept here", "export XDG_CACHE_HOME=/path/with/room"),
    "temporary": ("compiled kernels are kept here", "export TMPDIR=/path/with/room"),
}


def disks(machine: Machine) -> Iterator[Finding]:
    """The free room where the framework writes."""
    for name, folder in machine.folders.items():
        free = machine.free_bytes(folder)
        why, fix = _ROOM[name]
        if machine.system == "Windows":
            fix = fix.replace("export ", "setx ").replace("TMPDIR=", "TMP ").replace("=", " ")
        if free is None:
            yield warning("disk", name, f"{folder} can't be looked at", why=why, fix=fix)
        elif free < GIB:
            yield problem("disk", name, f"{gib(free)} free in {folder}", why=why, fix=fix)
        elif free < 5 * GIB:
            yield warning("disk", name, f"{gib(free)} free in {folder}", why=why, fix=fix)
        else:
            yield ok("disk", name, f"{gib(free)} free in {folder}")


def ports(machine: Machine) -> Iterator[Finding]:
    """Whether the default ports of the server and of distributed training are free."""
    for port, (name, owner, fix) in PORTS.items():
        if machine.port_is_free(port):
            yield ok("network", name, "free")
            continue
        free = next((other for other in range(port + 1, port + 20) if machine.port_is_free(other)), port + 1)
        why = f"it is {owner} default, and another program listens there"
        yield warning("network", name, "in use", why=why, fix=fix.format(free=free))


def open_files(machine: Machine) -> Iterator[Finding]:
    """How many files and connections this process may hold at once."""
    limit = machine.open_files
    if limit is None:
        return
    if 0 <= limit < LEAST_OPEN_FILES:
        yield warning(
            "system",
            "open files",
            f"at most {limit}",
            why="a server's connections and data shards run into it: 'Too many open files'",
            fix="ulimit -n 65536",
        )
    else:
        yield ok("system", "open files", "no limit" if limit < 0 or limit >= 2**31 else f"at most {limit}")


def place(machine: Machine) -> Iterator[Finding]:
    """Whether this is a container, a Kubernetes pod or a SLURM job."""
    environ = machine.environ
    places = []
    if environ.get("KUBERNETES_SERVICE_HOST"):
        places.append("Kubernetes pod")
    if environ.get("SLURM_JOB_ID"):
        nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES") or "?"
        places.append(f"SLURM job {environ['SLURM_JOB_ID']} on {nodes} node(s)")
    group = machine.read("/proc/1/cgroup") or ""
    if machine.read("/.dockerenv") is not None or environ.get("container") or "docker" in group or "kubepods" in group:
        places.append("container")
    yield ok("system", "runs in", f"{machine.system} {machine.architecture}" + "".join(f", {name}" for name in places))
