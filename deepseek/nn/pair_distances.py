"""Distances between all atoms of a molecule, or of a crystal with all its periodic images in reach.

Shapes are fixed by the number of atoms and of image shells alone, so that the computation can be compiled and exported.
Not here: neighbour lists; these are for systems of many thousand atoms.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from deepseek.errors import ModelError


def pair_vectors(positions: Tensor, cell: Tensor | None = None, image_shells: int = 0) -> Tensor:
    """Return the vectors from atom i to each image of atom j, (batch, atoms, atoms, images, 3), unit of `positions`.

    `positions` (batch, atoms, 3), anywhere in space; `cell` (batch, 3, 3) has the lattice vectors as rows. Without
    a cell there is one image. With it there are (2 image_shells + 1)^3: the nearest in units of the cell, and its
    shells of copies. The middle one of an atom with itself is the atom.
    """
    vectors = positions[:, None, :, :] - positions[:, :, None, :]
    if cell is None:
        return vectors[:, :, :, None, :]
    whole = torch.round(torch.einsum("bijx,bkx->bijk", vectors, reciprocal(cell)))
    nearest = vectors - torch.einsum("bijk,bkx->bijx", whole, cell)
    shells = range(-image_shells, image_shells + 1)
    steps = torch.tensor(list(itertools.product(shells, repeat=3)), dtype=cell.dtype, device=cell.device)
    shifts = torch.einsum("sk,bkx->bsx", steps, cell)
    return nearest[:, :, :, None, :] + shifts[:, None, None]


def reciprocal(cell: Tensor) -> Tensor:
    """Return the rows that turn positions into fractions of the cell's vectors: (batch, 3, 3), cell^-1 transposed.

    By cross products, since the general inverse lacks 16-bit numbers.
    """
    a, b, c = cell.unbind(dim=1)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    volume = (a * rows[:, 0]).sum(-1)
    return rows / volume[:, None, None]


def check_cell(cell: Tensor, cutoff: float, image_shells: int) -> None:
    """Check that the images reach as far as `cutoff` (same unit as the cell), on a CPU only. Raises ModelError."""
    if torch.compiler.is_compiling() or cell.device.type != "cpu":
        return
    height = float((1 / reciprocal(cell.detach().double()).norm(dim=-1)).nan_to_num(0.0).min())
    if cutoff > (image_shells + 0.5) * height * (1 + 1e-6):
        needed = max(0, int(-(-(cutoff / height - 0.5) // 1))) if height > 0 else None
        raise ModelError(
            "cell is too small for the cutoff",
            found=f"{height:.4g} between two faces, cutoff {cutoff:.4g}",
            wanted=f"at least {cutoff / (image_shells + 0.5):.4g} with image_shells = {image_shells}",
            fix="give three independent vectors" if needed is None else f"set image_shells to {needed}",
        )
