"""SchNet: energies of molecules and crystals from atoms and their distances, and forces as the energy's slope.

Paper: Schuett et al. 2017, "SchNet: A continuous-filter convolutional neural network for modeling quantum
interactions", arXiv:1706.08566; periodic boundaries and the cosine cutoff as in Schuett et al. 2018, arXiv:1712.06113.
Public counterparts: SchNetPack and PyTorch Geometric; like these, a filter's second layer has no activation.

Molecules of a batch are padded to one number of atoms with atomic number 0. All pairs are computed, which suits
molecules and unit cells; there is no neighbour list. Lengths in angstrom, energies in the unit of the training data.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.nn.checks import check_floats, check_shape
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.pair_distances import check_cell, pair_vectors
from deepseek.nn.radial_basis import GaussianBasis, cosine_cutoff, shifted_softplus
from deepseek.nn.recompute import recomputed


class SchNetConfig(Config):
    """Sizes of a SchNet; the defaults are the paper's."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    max_atomic_number: int = Field(default=100, ge=1, le=200)
    """Heaviest element the model knows."""
    d_model: int = Field(default=64, ge=1, le=1 << 16)
    """Features of an atom."""
    num_filters: int | None = Field(default=None, ge=1, le=1 << 16)
    """Channels of the continuous-filter convolutions; null is d_model."""
    num_interactions: int = Field(default=3, ge=1, le=1024)
    """Number of interaction blocks."""
    num_radial: int = Field(default=300, ge=2, le=1 << 16)
    """Number of Gaussians that describe a distance."""
    gamma: float | None = Field(default=None, gt=0)
    """Sharpness of the Gaussians in 1/angstrom^2 (the paper's is 10); null suits their spacing."""
    cutoff: float = Field(default=30.0, gt=0, le=1000)
    """Atoms further apart than this, in angstrom, do not see each other."""
    cutoff_function: Literal["cosine", "none"] = "cosine"
    """How interactions end at the cutoff: "cosine" smoothly, "none" at once (for molecules smaller than the cutoff)."""
    image_shells: int = Field(default=1, ge=0, le=8)
    """For crystals: shells of periodic images; the cutoff may be (image_shells + 1/2) times the cell's least height."""
    readout: Literal["sum", "mean"] = "sum"
    """The energy is the sum over atoms, or their mean."""
    gradient_checkpointing: bool = False
    """Compute the interactions' activations again in the backward pass: less memory, about a third more time."""


class EnergyForces(NamedTuple):
    """Energies (batch,), and forces (batch, atoms, 3) in energy per angstrom, zero at padding."""

    energies: Tensor
    forces: Tensor


class SchNet(nn.Module):
    """Atomic numbers and positions to energies."""

    config: SchNetConfig

    def __init__(self, config: SchNetConfig) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.embedding = nn.Embedding(config.max_atomic_number + 1, d_model, padding_idx=0)
        self.basis = GaussianBasis(config.cutoff, config.num_radial, config.gamma)
        self.interactions = nn.ModuleList(
            Interaction(d_model, config.num_filters or d_model, config.num_radial)
            for _ in range(config.num_interactions)
        )
        self.energy_hidden = nn.Linear(d_model, max(d_model // 2, 1))
        self.energy_out = nn.Linear(max(d_model // 2, 1), 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Standard normal embeddings, Xavier-uniform weights, biases of zero."""
        nn.init.normal_(self.embedding.weight)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor | None = None) -> Tensor:
        """Return energies (batch,).

        `atomic_numbers` (batch, atoms) int64, 0 at padding; `positions` (batch, atoms, 3) in angstrom; `cell`
        (batch, 3, 3), lattice vectors as rows, makes the atoms a crystal's. Raises ModelError for other shapes, an
        unknown element, and a cell smaller than `image_shells` can serve.
        """
        self._check(atomic_numbers, positions, cell)
        present = atomic_numbers > 0
        expanded, reach = self._pairs(present, positions, cell)
        x = self.embedding(atomic_numbers)
        for interaction in self.interactions:
            recompute = self.config.gradient_checkpointing and self.training
            x = x + recomputed(recompute, interaction, x, expanded, reach)
        energies = self.energy_out(shifted_softplus(self.energy_hidden(x))).squeeze(-1)
        total = torch.where(present, energies, 0).sum(-1)
        return total / present.sum(-1).clamp_min(1) if self.config.readout == "mean" else total

    def energy_and_forces(self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor | None = None) -> EnergyForces:
        """Return energies and forces = -dE/dposition; arguments and errors as in `forward`.

        Works in no_grad and inference mode too. Where gradients are wanted the forces have one, for training on them.
        """
        train = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            places = positions.clone()  # tensors of inference mode have no gradient, their copies do
            if not places.requires_grad:
                places.requires_grad_()
            energies = self(atomic_numbers.clone(), places, None if cell is None else cell.clone())
            (slope,) = torch.autograd.grad(energies.sum(), places, create_graph=train)
        return EnergyForces(energies if train else energies.detach(), -slope)

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return methane, each a little distorted, and one place of padding: (batch_size, 6) atoms."""
        generator = torch.Generator().manual_seed(0)
        numbers = torch.tensor([6, 1, 1, 1, 1, 0]).clamp_max(self.config.max_atomic_number)
        corners = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]]) * 0.629
        positions = corners + 0.05 * torch.randn(batch_size, 6, 3, generator=generator)
        weight = float_tensor(self.energy_out)
        return {
            "atomic_numbers": numbers.repeat(batch_size, 1).to(weight.device),
            "positions": positions.to(weight),
        }

    def _pairs(self, present: Tensor, positions: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return all pairs' Gaussians (batch, atoms, atoms, images, num_radial), and how much each pair counts."""
        weight = float_tensor(self.energy_out)
        wide = torch.promote_types(positions.dtype, torch.float32)  # 16 bits are too coarse for places
        config = self.config
        vectors = pair_vectors(positions.to(wide), None if cell is None else cell.to(wide), config.image_shells)
        atoms, images = vectors.shape[1], vectors.shape[3]
        itself = torch.eye(atoms, dtype=torch.bool, device=vectors.device)[:, :, None]
        itself = itself & (torch.arange(images, device=vectors.device) == images // 2)
        counts = (present[:, :, None] & present[:, None, :])[..., None] & ~itself
        # the root has no slope at zero: pairs that do not count get a distance that is harmless
        distances = torch.where(counts, vectors.square().sum(-1), 1.0).clamp_min(1e-12).sqrt()
        smooth = config.cutoff_function == "cosine"
        inside = cosine_cutoff(distances, config.cutoff) if smooth else (distances < config.cutoff).to(wide)
        return self.basis(distances).to(weight.dtype), (inside * counts).to(weight.dtype)

    def _check(self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            return
        check_shape("atomic_numbers", atomic_numbers, ("batch", "atoms"))
        check_shape("positions", positions, (*atomic_numbers.shape, 3))
        check_floats("positions", positions, "positions.float(), in angstrom")
        if atomic_numbers.is_floating_point() or atomic_numbers.dtype == torch.bool:
            raise ModelError("atomic_numbers must hold whole numbers", found=atomic_numbers.dtype, wanted="int64")
        if atomic_numbers.device.type == "cpu" and atomic_numbers.numel():
            low, high = int(atomic_numbers.min()), int(atomic_numbers.max())
            if low < 0 or high > self.config.max_atomic_number:
                wanted = f"1 to {self.config.max_atomic_number}, and 0 at padding"
                raise ModelError("atomic_numbers has an unknown element", found=f"{low} to {high}", wanted=wanted)
        if cell is not None:
            check_shape("cell", cell, (atomic_numbers.shape[0], 3, 3))
            check_cell(cell, self.config.cutoff, self.config.image_shells)


class Interaction(nn.Module):
    """What an atom learns from the others: their features times filters made from the distances, summed.

    The filters of an atom's images are added first: they act on the same features.
    """

    def __init__(self, d_model: int, num_filters: int, num_radial: int) -> None:
        super().__init__()
        self.filter_hidden = nn.Linear(num_radial, num_filters)
        self.filter_out = nn.Linear(num_filters, num_filters)
        self.send = nn.Linear(d_model, num_filters, bias=False)
        self.receive = nn.Linear(num_filters, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, expanded: Tensor, reach: Tensor) -> Tensor:
        """Return what to add to `x` (batch, atoms, d_model).

        `expanded` (batch, atoms, atoms, images, num_radial); `reach` (batch, atoms, atoms, images), 0 for no pair.
        """
        filters = self.filter_out(shifted_softplus(self.filter_hidden(expanded)))
        filters = (filters * reach[..., None]).sum(dim=3)
        gathered = torch.einsum("bijf,bjf->bif", filters, self.send(x))
        out: Tensor = self.out(shifted_softplus(self.receive(gathered)))
        return out
