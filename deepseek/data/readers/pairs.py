"""Files that belong together by name: an image and its mask, a recording and its text.

Two layouts: two folders with equal stems (`images/7.png`, `labels/7.png`), at any depth; or side by side with a suffix
(`7.png`, `7_mask.png`).
"""

from __future__ import annotations

from collections.abc import Sequence

from deepseek.data.readers.tree import shown, stem
from deepseek.errors import DataError

INPUT_FOLDERS = ("image", "images", "img", "imgs", "imagestr", "jpegimages", "inputs")
TARGET_FOLDERS = ("label", "labels", "mask", "masks", "annotations", "labelstr", "segmentationclass", "gt", "targets")
TARGET_ENDINGS = ("_mask", "_label", "_seg", "_gt", "_labels", "_masks")


def pair_by_name(
    names: Sequence[str], inputs: str | None = None, targets: str | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (pairs of input and target, names that have no partner), both sorted.

    `inputs` and `targets` name the folders, where they are not called as usual. Raises DataError where two files
    claim the same place.
    """
    sources: dict[str, str] = {}
    marks: dict[str, str] = {}
    input_folders = INPUT_FOLDERS if inputs is None else (inputs.lower().strip("/"),)
    target_folders = TARGET_FOLDERS if targets is None else (targets.lower().strip("/"),)
    for name in names:
        folders = [part.lower() for part in name.split("/")[:-1]]
        base = stem(name)
        ending = next((one for one in TARGET_ENDINGS if base.lower().endswith(one)), "")
        is_target = any(part in target_folders for part in folders)
        is_input = any(part in input_folders for part in folders)
        kept = "/".join(part for part in folders if part not in target_folders and part not in input_folders)
        base = base[: len(base) - len(ending)] if ending and not is_input else base
        side = marks if is_target or (ending and not is_input) else sources
        key = f"{kept}/{base}"
        if key in side:
            raise DataError(
                "two files have the same name but for folder or suffix", found=f"{shown(side[key])} and {shown(name)}"
            )
        side[key] = name
    pairs = [(sources[key], marks[key]) for key in sorted(sources.keys() & marks.keys(), key=lambda key: sources[key])]
    alone = sorted(
        [sources[key] for key in sources.keys() - marks.keys()] + [marks[key] for key in marks.keys() - sources.keys()]
    )
    return pairs, alone


def refuse_alone(where: str, alone: Sequence[str], pairs: int) -> None:
    """Raise DataError for files without a partner."""
    if alone or not pairs:
        raise DataError(
            f"{where}: not every file has its partner",
            found=f"{pairs} pairs, {len(alone)} alone" + (f", such as {shown(alone[0])}" if alone else ""),
            wanted="images/7.png with labels/7.png, or 7.png with 7_mask.png",
            fix="add what is missing, name the folders with inputs= and targets=, or pass partial=True",
        )
