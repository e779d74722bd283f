"""Which bundles a folder holds, what they are called, and their versions. Nothing outside the folder is ever opened.

`DIR/NAME/` is a bundle, or a folder of versions: `DIR/NAME/1/`, `DIR/NAME/2/`. Not here: reading bundles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepseek.errors import BundleError
from deepseek.serve.rest.schema import MODEL_NAME

_MARK = "config.yaml"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
FIRST_VERSION = "1"
TEMPORARY = ".tmp-"
"""In the names of folders that are being written."""


def find_bundles(model_dir: str | Path) -> dict[str, Path]:
    """Return name -> path: `model_dir` itself where it is a bundle, else its subfolders that are or hold versions.

    Hidden folders and temporary ones of writers are passed over. Raises BundleError when there is none, when a
    name is not fit for a model, or when a link leads out of `model_dir`.
    """
    root = Path(model_dir)
    if not root.exists():
        raise BundleError(f"{root} does not exist", wanted="a bundle, or a folder of bundles", fix="check the path")
    if not root.is_dir() or (root / _MARK).exists():
        return name_bundles([root])
    folders = sorted(path for path in root.iterdir() if not path.name.startswith(".") and TEMPORARY not in path.name)
    bundles = {path.name: path for path in folders if _inside(path, root) and path.is_dir() and versions_of(path)}
    if not bundles:
        raise BundleError(
            f"no bundle in {root}",
            found=", ".join(path.name for path in folders[:8]) or "an empty folder",
            wanted=f"a subfolder with a {_MARK}",
            fix="write one with ds.save(model, path) or 'deepseek train'",
        )
    for name, path in bundles.items():
        _check(name, path, root)
    return bundles


def find_bundle(model_dir: str | Path, name: str) -> Path | None:
    """Return where the folder has the bundle, or the versions, of this name; None where it has none.

    The others in the folder are not looked at. Raises BundleError for a link that leads out of `model_dir`.
    """
    root = Path(model_dir)
    if (root / _MARK).exists():
        return root if root.resolve().name == name else None
    if not MODEL_NAME.fullmatch(name) or name.startswith(".") or TEMPORARY in name:
        return None
    path = root / name
    return path if _inside(path, root) and versions_of(path) else None


def versions_of(path: str | Path) -> dict[str, Path]:
    """Return version -> bundle, the oldest first: numbered subfolders that are bundles, else the bundle as version 1.

    Empty where there is neither.
    """
    path = Path(path)
    if path.is_file() or (path / _MARK).exists():
        return {FIRST_VERSION: path}
    if not path.is_dir():
        return {}
    numbered = [entry for entry in path.iterdir() if _VERSION.fullmatch(entry.name) and (entry / _MARK).exists()]
    return {entry.name: entry for entry in sorted(numbered, key=lambda entry: int(entry.name))}


def name_bundles(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Return name -> path for bundles given one by one. Raises BundleError for a bad name or one used twice."""
    bundles: dict[str, Path] = {}
    for given in paths:
        path = Path(given).resolve()
        name = path.name if path.is_dir() else path.stem
        _check(name, path, path)
        if name in bundles:
            raise BundleError(f"two bundles are called '{name}'", found=f"{bundles[name]} and {path}", fix="rename one")
        bundles[name] = path
    return bundles


def check_bundle(name: str, path: str | Path) -> None:
    """Raise BundleError where a name is not fit for a model, or it or a link in it leads elsewhere."""
    _inside(Path(path), Path(path).parent)
    _check(name, Path(path), Path(path))


def without_paths(text: str, paths: Iterable[Path | None]) -> str:
    """Return `text` with each of `paths`, as it was given or in full, shortened to its name."""
    spelled = {spelling for path in paths if path is not None for spelling in (path, path.absolute(), path.resolve())}
    for path in sorted(spelled, key=lambda path: len(str(path)), reverse=True):
        if len(path.parts) > 1:
            text = text.replace(str(path), path.name)
    return text


def _check(name: str, path: Path, root: Path) -> None:
    if not MODEL_NAME.fullmatch(name) or name in {".", ".."}:
        raise BundleError(
            f"{path} can't be served under its name",
            found=ascii(name),
            wanted="1 to 64 letters, digits, '.', '_' or '-'",
            fix="rename the folder",
        )
    for entry in path.rglob("*"):
        _inside(entry, root)


def _inside(path: Path, root: Path) -> bool:
    """Return True, or raise BundleError where a link leads out of `root`."""
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(
            f"{path} is a link that leads out of {root}", found=path.resolve(), fix="copy the files instead"
        )
    return True
