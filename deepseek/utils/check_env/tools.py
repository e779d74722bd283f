"""Compilers, and the optional packages by extra."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, ok, warning
from deepseek.utils.check_env.machine import Machine

EXTRAS = {
    "serve": (
        "starlette",
        "uvicorn",
        "httptools",
        "uvloop",
        "prometheus-client",
        "grpcio",
        "grpcio-health-checking",
        "grpcio-reflection",
        "redis",
        "websockets",
        "llguidance",
        "orjson",
    ),
    "tracing": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "compress": ("torch-pruning",),
    "report": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "nlp": ("transformers",),
    "audio": ("soundfile",),
    "vision": ("pillow",),
    "data": ("h5py", "pyarrow"),
    "cluster": ("cloudpickle", "ray"),
}
"""The distributions of each extra, as pyproject.toml lists them (a test compares the two)."""

_NOT_ON_WINDOWS = {"uvloop"}


def cpp_compiler(machine: Machine) -> Iterator[Finding]:
    """The C++ compiler that torch.compile builds its CPU kernels with, and the headers of Python they include."""
    named = machine.environ.get("CXX")
    choices = [named] if named else ["cl"] if machine.system == "Windows" else ["g++", "clang++"]
    found = next((choice for choice in choices if machine.which(choice.partition(" ")[0]) is not None), None)
    if found is None:
        yield warning(
            "tools",
            "C++ compiler",
            f"CXX is {named}, which is not there" if named else f"none of {', '.join(choices)}",
            why="torch.compile can't build its CPU kernels; training runs, but slower",
            fix="unset CXX" if named else _install(machine, "g++", "gcc-c++"),
        )
        return
    yield ok("tools", "C++ compiler", _version(machine, found))


def c_compiler(machine: Machine) -> Iterator[Finding]:
    """The C compiler that torch.compile's GPU kernels (Triton) are started with."""
    if machine.system == "Windows":
        return
    found = next((choice for choice in ("gcc", "clang", "cc") if machine.which(choice) is not None), None)
    if found is None:
        yield warning(
            "tools",
            "C compiler",
            "none of gcc, clang, cc",
            why="torch.compile can't build its GPU kernels",
            fix=_install(machine, "gcc", "gcc"),
        )
        return
    yield ok("tools", "C compiler", _version(machine, found))


def python_headers(machine: Machine) -> Iterator[Finding]:
    """Python's own headers, which the kernels that torch.compile builds include."""
    folder = machine.headers
    if machine.read(f"{folder}/Python.h") is None:
        major, minor = machine.python[:2]
        yield warning(
            "tools",
            "Python headers",
            f"no Python.h in {folder}",
            why="torch.compile can't build its CPU kernels; training runs, but slower",
            fix=_install(machine, f"python{major}.{minor}-dev", f"python{major}.{minor}-devel"),
        )
    else:
        yield ok("tools", "Python headers", folder)


def extras(machine: Machine) -> Iterator[Finding]:
    """The optional packages: versions, or the line that installs them."""
    for extra, packages in EXTRAS.items():
        wanted = [name for name in packages if machine.system != "Windows" or name not in _NOT_ON_WINDOWS]
        versions = {name: machine.version_of(name) for name in wanted}
        missing = [name for name, version in versions.items() if version is None]
        install = f"pip install 'deepseek-framework[{extra}]'"
        if not missing:
            yield ok("optional", f"[{extra}]", ", ".join(f"{name} {version}" for name, version in versions.items()))
        elif len(missing) == len(wanted):
            yield ok("optional", f"[{extra}]", "not installed", fix=install)
        else:
            yield warning(
                "optional",
                f"[{extra}]",
                f"lacks {', '.join(missing)}",
                why="only a part of this extra is installed",
                fix=install,
            )


def _version(machine: Machine, program: str) -> str:
    lines = machine.output(*program.split(), "--version").splitlines()
    return lines[0].strip() if lines else program


def _install(machine: Machine, debian: str, fedora: str) -> str:
    """Return the command that installs a system package here."""
    prefix = machine.root_prefix()
    if machine.system == "Darwin":
        return "xcode-select --install"
    if machine.system == "Windows":
        return "winget install Microsoft.VisualStudio.2022.BuildTools"
    managers = {
        "apt-get": f"{prefix}apt-get install -y {debian}",
        "dnf": f"{prefix}dnf install -y {fedora}",
        "yum": f"{prefix}yum install -y {fedora}",
        "zypper": f"{prefix}zypper install -y {fedora}",
        "pacman": f"{prefix}pacman -S --noconfirm {'python' if 'python' in debian else 'gcc'}",
        "apk": f"{prefix}apk add {'python3-dev' if 'python' in debian else 'g++'}",
    }
    return next((line for name, line in managers.items() if machine.which(name) is not None), f"install {debian}")
