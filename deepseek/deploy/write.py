"""Writes a deployment's folder as a whole or not at all, and never over what somebody else wrote.

`.deepseek-deploy.json` in the folder says that it is ours and what each file was when it was written. A folder that is
ours and unchanged is replaced; the user's secrets in it are kept. With `force` any other is moved aside, not deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.deploy.compose import compose_files
from deepseek.deploy.docker import copy_models, copy_source, docker_files, extras_for
from deepseek.deploy.manifests import helm_files, kubernetes_files
from deepseek.deploy.plan import DeployPlan, models_in, plan_for
from deepseek.errors import ConfigError, did_you_mean
from deepseek.files import atomic_folder, sha256, storage_errors

KINDS = ("docker", "compose", "k8s", "helm")
MARK = ".deepseek-deploy.json"
SECRETS = "secrets"


def deploy(kind: str, bundle: str | Path, out: str | Path, *, force: bool = False, **settings: Any) -> DeployPlan:
    """Write the files of one kind of deployment (`docker`, `compose`, `k8s`, `helm`) into the folder `out`.

    `bundle` is a bundle or a folder of them; `settings` are fields of DeployPlan. Returns the plan.
    Raises ConfigError for settings that can't work or a folder that is not ours, BundleError for a bundle that can't be
    served, StorageError when the disk refuses; the folder is then as it was.
    """
    if kind not in KINDS:
        raise ConfigError("unknown kind of deployment", found=repr(kind), fix=did_you_mean(kind, KINDS))
    source, target = Path(bundle), Path(os.path.abspath(out))
    models = models_in(source)
    in_cluster = kind in {"k8s", "helm"}
    _check_volume(settings.get("volume"), in_cluster)
    plan = plan_for(models, **settings)
    _refuse_inside(target, models)
    aside = _room_for(target, force)
    extras = [] if in_cluster else extras_for(models)
    texts = _texts(kind, plan, extras)
    if aside is not None:
        with storage_errors(target):
            os.rename(target, aside)
    try:
        _write(target, texts, kind, {} if in_cluster or plan.volume else models, before=aside or target)
    except BaseException:
        if aside is not None and not target.exists():
            os.rename(aside, target)
        raise
    return plan


def _texts(kind: str, plan: DeployPlan, extras: list[str]) -> dict[str, str]:
    match kind:
        case "docker":
            return docker_files(plan, extras)
        case "compose":
            return {**docker_files(plan, extras, with_readme=False), **compose_files(plan)}
        case "k8s":
            return kubernetes_files(plan)
    return helm_files(plan)


def _write(target: Path, texts: Mapping[str, str], kind: str, models: Mapping[str, Path], *, before: Path) -> None:
    with atomic_folder(target, replace=True) as folder:
        for name, text in texts.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.parent.chmod(0o755)  # whatever the umask: users of containers read these
            place.write_text(text, encoding="utf-8", newline="\n")
            place.chmod(0o755 if name.endswith(".sh") else 0o644)
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        (folder / MARK).write_text(json.dumps({"kind": kind, "files": hashes}, indent=2) + "\n", encoding="utf-8")
        if "Dockerfile" in texts:
            copy_source(folder)
        if models:
            copy_models(models, folder)
        if (before / MARK).is_file() and (before / SECRETS).is_dir():
            shutil.copytree(before / SECRETS, folder / SECRETS, symlinks=True)


def _room_for(target: Path, force: bool) -> Path | None:
    """Return where to move what is at `target`, None where it may be replaced. Raises ConfigError."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    changed = _changed(target)
    if changed == []:
        return None
    if force:
        return next(
            place for n in range(1, 1 << 16) if not (place := target.with_name(f"{target.name}.before-{n}")).exists()
        )
    what = "is no folder of a deployment" if changed is None else "was changed since it was written"
    raise ConfigError(
        f"{target} {what}",
        found=None if changed is None else ", ".join(changed[:8]),
        wanted="a new or empty folder, or one that 'deepseek deploy' wrote",
        fix="choose another with -o, or --force moves this one aside",
    )


def _changed(target: Path) -> list[str] | None:
    """Return our files that are other than we wrote them, and files beside them; None for a folder that is not ours."""
    try:
        files: dict[str, str] = json.loads((target / MARK).read_text(encoding="utf-8"))["files"]
        wrong = [name for name, digest in files.items() if sha256(target / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    known = {*(name.partition("/")[0] for name in files), MARK, SECRETS, "framework", "models"}
    return [*wrong, *sorted(entry.name for entry in target.iterdir() if entry.name not in known)]


def _refuse_inside(target: Path, models: Mapping[str, Path]) -> None:
    place = target.resolve()
    for path in models.values():
        bundle = path.resolve()
        if place.is_relative_to(bundle) or bundle.is_relative_to(place):
            raise ConfigError(
                f"{target} and the bundle {path} lie in each other", fix="choose a folder outside of it with -o"
            )


def _check_volume(volume: object, in_cluster: bool) -> None:
    """Raise ConfigError for models outside of the image that can't be there."""
    from deepseek.deploy.names import check_subdomain

    if volume is None:
        return
    if in_cluster:
        check_subdomain(str(volume), "volume claim's name")
    elif not os.path.isabs(str(volume)) or not os.path.isdir(str(volume)):
        raise ConfigError(
            "the models' folder can't be mounted", found=volume, wanted="the whole path of a folder on this machine"
        )
