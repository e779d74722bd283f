"""Energies and forces of atoms, learned together.

Batches: `atomic_numbers` (batch, atoms) int64, 0 at padding, `positions` (batch, atoms, 3), `cell` (batch, 3, 3) for
crystals, `energies` (batch,), and `forces` (batch, atoms, 3) of -dE/dposition; what stands at padding is not read.
Energies may be in any unit; forces are in that unit per unit of length, and so are the metrics.
Source: Schuett et al. 2017, "SchNet", arXiv:1706.08566, section 3 (the joint loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError, ModelError
from deepseek.tasks.inputs import target
from deepseek.tasks.task import Batch, Loss, LossSum


class ForceField(Protocol):
    """A model of energies whose slope is known, as `deepseek.models.schnet.SchNet`."""

    def energy_and_forces(self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor | None = None) -> Any:
        """Return `energies` (batch,) and `forces` (batch, atoms, 3); works without gradients switched on too."""
        ...


class EnergiesForces:
    """Squared errors of energy and forces, weighted, summed over the structures.

    Of a structure: `energy_weight` * (error of the energy / atoms)^2 + `force_weight` * mean squared error of its
    forces' components. With `per_atom` false the energy's error is that of the whole structure. With `force_weight` 0
    forces are neither needed nor computed. Raises ConfigError for weights out of range.
    """

    name = "energies_forces"
    compilable = False
    """Forces are derivatives; training takes theirs, and compiled code has no second ones."""

    def __init__(self, energy_weight: float = 1.0, force_weight: float = 1.0, per_atom: bool = True) -> None:
        for name, weight in (("energy_weight", energy_weight), ("force_weight", force_weight)):
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"{name} is a weight", found=weight, wanted="0 or more")
        if not energy_weight and not force_weight:
            raise ConfigError("there is nothing to learn", found="both weights are 0", wanted="one above 0")
        self.energy_weight, self.force_weight, self.per_atom = energy_weight, force_weight, per_atom

    def count(self, batch: Batch) -> int:
        """Return the number of structures."""
        return len(target(batch, "energies"))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss summed over the structures, and their number. Raises DataError for targets that don't fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        return self._losses(self._answer(model, batch), batch)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def evaluator(self) -> EnergiesForcesEvaluator:
        """Return what measures the loss and the mean absolute errors, in the unit of the data."""
        return EnergiesForcesEvaluator(self)

    def predict(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return energies (batch,) and forces (batch, atoms, 3) for a batch, without gradients."""
        with torch.no_grad():
            found = _force_field(model).energy_and_forces(*_inputs(inputs))
            return found[0], found[1]

    def _answer(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return energies and, where they are learned, forces, both in float32 at least."""
        _check(batch, forces=self.force_weight > 0)
        if not self.force_weight:
            return model(*_inputs(batch)), None
        found = _force_field(model).energy_and_forces(*_inputs(batch))
        return found[0], found[1]

    def _losses(self, found: tuple[Tensor, Tensor | None], batch: Batch) -> Tensor:
        energies, forces = found
        present = batch["atomic_numbers"] > 0
        atoms = present.sum(dim=1).clamp_min(1)
        error = _wide(energies) - batch["energies"]
        loss = self.energy_weight * (error / atoms if self.per_atom else error).square()
        if forces is not None:
            apart = torch.where(present[:, :, None], _wide(forces) - batch["forces"], 0)
            loss = loss + self.force_weight * apart.square().sum(dim=(1, 2)) / (3 * atoms)
        return loss.sum().float()


class EnergiesForcesEvaluator:
    """Measures `loss`, `energy_mae` of a structure, `energy_mae_per_atom` and, where forces are learned, `force_mae`
    of a component; all in the unit of the data. One pass."""

    def __init__(self, task: EnergiesForces) -> None:
        self._task = task
        self._loss, self._energy, self._per_atom, self._force = LossSum(), LossSum(), LossSum(), LossSum()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch; gradients are switched on where the forces need them."""
        energies, forces = self._task._answer(model, batch)
        structures, present = self._task.count(batch), batch["atomic_numbers"] > 0
        self._loss.add(self._task._losses((energies, forces), batch), structures)
        error = (_wide(energies) - batch["energies"]).abs()
        self._energy.add(error.sum(), structures)
        self._per_atom.add((error / present.sum(dim=1).clamp_min(1)).sum(), structures)
        if forces is not None:
            apart = torch.where(present[:, :, None], _wide(forces) - batch["forces"], 0)
            self._force.add(apart.abs().sum(), 3 * int(present.sum()))

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when there was no structure."""
        found = {"loss": self._loss.mean(), "energy_mae": self._energy.mean()}
        found["energy_mae_per_atom"] = self._per_atom.mean()
        return {**found, "force_mae": self._force.mean()} if self._force.count else found


def _inputs(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    return batch["atomic_numbers"], batch["positions"], batch.get("cell")


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _force_field(model: nn.Module) -> ForceField:
    if not hasattr(model, "energy_and_forces"):
        raise ModelError(
            "the model gives no forces",
            found=type(model).__name__,
            wanted="a method energy_and_forces, as SchNet has",
            fix="set force_weight to 0 to learn energies alone",
        )
    return cast(ForceField, model)


def _check(batch: Batch, forces: bool) -> None:
    """Check targets in eager code. Raises DataError."""
    if torch.compiler.is_compiling():
        return
    numbers = target(batch, "atomic_numbers")
    for name, wanted in (("energies", numbers.shape[:1]), ("forces", (*numbers.shape, 3)))[: 1 + forces]:
        values = target(batch, name)
        if values.shape != wanted or not values.is_floating_point():
            raise DataError(
                f"{name} don't fit the atoms",
                found=f"{tuple(values.shape)} of {values.dtype}",
                wanted=f"{tuple(wanted)}, floating point",
            )
