"""An image's build context: the Dockerfile, this framework's source, the versions to install, the models.

Source: https://docs.docker.com/reference/dockerfile/. Not here: what runs beside the image (see `compose`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from deepseek import __version__
from deepseek.deploy.names import bracketed, cores, memory_bytes
from deepseek.deploy.pages import page
from deepseek.deploy.pins import PACKAGE, pinned, project_file, source_root
from deepseek.deploy.plan import DeployPlan
from deepseek.yaml_source import read_yaml

BASE_IMAGE = "python:3.13.7-slim-bookworm"
_BESIDE = ("README.md", "LICENSE")
_PACKAGE = Path(__file__).parents[1]
_IMAGE_TASKS = {"image_classification", "detection", "segmentation", "contrastive", "diffusion"}


def extras_for(models: Mapping[str, Path]) -> list[str]:
    """Return the extras that serving these models takes: what decodes their inputs, the runtimes of their exports."""
    extras = {"serve"}
    for path in models.values():
        for config in path.rglob("config.yaml"):
            said = read_yaml(config).value
            task = said.get("task") if isinstance(said, dict) else None
            extras |= {"vision"} if task in _IMAGE_TASKS else {"audio"} if task == "speech_recognition" else set()
            extras |= {"export"} if (config.parent / "exports").is_dir() else set()
    return sorted(extras)


def docker_files(plan: DeployPlan, extras: list[str], *, with_readme: bool = True) -> dict[str, str]:
    """Return path -> text of the build context, but for source and models."""
    listed = f"[{','.join(extras)}]"
    facts = {
        "base_image": BASE_IMAGE,
        "requirement": f"/framework{listed}",
        "from_index": f"{PACKAGE}{listed}=={__version__}",
        "host": bracketed(plan.host),
        "memory": memory_bytes(plan.memory),
        "cpus": cores(plan.cpu),
    }
    files = {
        "Dockerfile": page("Dockerfile.j2", plan, **facts),
        ".dockerignore": page("dockerignore.j2", plan, **facts),
        "constraints.txt": "\n".join(pinned(extras)) + "\n",
    }
    return {**files, "README.md": page("docker.md.j2", plan, **facts)} if with_readme else files


def copy_source(folder: Path) -> None:
    """Put this framework's source into the build context: the checkout's or the installed one."""
    target = folder / "framework"
    target.mkdir()
    (target / "pyproject.toml").write_text(project_file(), encoding="utf-8")
    for name in _BESIDE if source_root() is not None else ():
        shutil.copyfile(_PACKAGE.parent / name, target / name)
    shutil.copytree(_PACKAGE, target / "deepseek", ignore=shutil.ignore_patterns("__pycache__", "*.tmp-*", ".*"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def copy_models(models: Mapping[str, Path], folder: Path) -> None:
    """Put the models into the build context, readable for everyone: in the container another user reads them."""
    for name, path in models.items():
        shutil.copytree(path, folder / "models" / name, ignore=shutil.ignore_patterns("*.tmp-*"))
    for path in (folder / "models", *(folder / "models").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
