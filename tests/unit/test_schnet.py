"""SchNet: against loops over atoms and images, finite differences, the symmetries of space, crystals, cutoffs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.factory import build
from deepseek.models.schnet import SchNet, SchNetConfig
from deepseek.nn.pair_distances import pair_vectors, reciprocal
from deepseek.nn.radial_basis import GaussianBasis, cosine_cutoff, shifted_softplus

CELL = torch.tensor([[4.0, 0.3, 0.0], [-0.5, 3.6, 0.2], [0.1, 0.4, 4.3]], dtype=torch.float64)
NUMBERS = torch.tensor([[8, 1, 6, 0]])


def toy(**changes: object) -> SchNet:
    torch.manual_seed(3)
    sizes = {"max_atomic_number": 10, "d_model": 8, "num_filters": 6, "num_interactions": 2, "num_radial": 12}
    model = SchNet(SchNetConfig(**{**sizes, "cutoff": 4.0, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.double().eval()


def places(atoms: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, atoms, 3, generator=generator, dtype=torch.float64) * 3


def looped(model: SchNet, numbers: Tensor, positions: Tensor, cell: Tensor | None = None, reach: int = 3) -> float:
    """The energy by loops over atoms and, in a crystal, over all cells within `reach`, as the paper writes it."""
    config = model.config
    atoms = [i for i, number in enumerate(numbers.tolist()) if number > 0]
    steps = [(0, 0, 0)] if cell is None else list(itertools.product(range(-reach, reach + 1), repeat=3))
    features = {i: model.embedding.weight[int(numbers[i])] for i in atoms}
    spacing = config.cutoff / (config.num_radial - 1)
    for block in model.interactions:
        added = {}
        for i in atoms:
            total = torch.zeros(block.send.out_features, dtype=torch.float64)
            for j, step in itertools.product(atoms, steps):
                if i == j and step == (0, 0, 0):
                    continue
                shift = 0 if cell is None else torch.tensor(step, dtype=torch.float64) @ cell
                distance = float((positions[j] + shift - positions[i]).norm())
                if distance >= config.cutoff:
                    continue
                row = [math.exp(-((distance - k * spacing) ** 2) / (2 * spacing**2)) for k in range(config.num_radial)]
                hidden = torch.log(0.5 * torch.exp(block.filter_hidden(torch.tensor(row, dtype=torch.float64))) + 0.5)
                envelope = 0.5 * (math.cos(math.pi * distance / config.cutoff) + 1)
                total = total + block.send(features[j]) * block.filter_out(hidden) * envelope
            added[i] = block.out(torch.log(0.5 * torch.exp(block.receive(total)) + 0.5))
        features = {i: features[i] + added[i] for i in atoms}
    outs = [model.energy_out(torch.log(0.5 * torch.exp(model.energy_hidden(features[i])) + 0.5)) for i in atoms]
    return float(sum(outs))  # type: ignore[arg-type]


# --- energies


def test_energy_of_a_molecule_equals_the_loops() -> None:
    model, positions = toy(), places()
    with torch.no_grad():
        assert float(model(NUMBERS, positions)) == pytest.approx(looped(model, NUMBERS[0], positions[0]), abs=1e-10)


@pytest.mark.parametrize("shells", [1, 2])
def test_energy_of_a_crystal_equals_the_loops(shells: int) -> None:
    model, positions = toy(image_shells=shells), places() * 4 - 5  # far outside the cell too
    with torch.no_grad():
        found = float(model(NUMBERS, positions, CELL[None]))
        assert found == pytest.approx(looped(model, NUMBERS[0], positions[0], CELL, reach=6), abs=1e-10)


def test_a_cell_repeated_has_the_energy_of_its_parts() -> None:
    """A supercell of 3 x 3 x 3, in which every image is the nearest one, against one cell and two shells."""
    numbers, positions = NUMBERS[:, :2], places(2)
    steps = torch.tensor(list(itertools.product(range(3), repeat=3)), dtype=torch.float64)
    repeated = (positions[:, None] + (steps @ CELL)[None, :, None]).reshape(1, -1, 3)
    one, many = toy(image_shells=2), toy(image_shells=0)
    with torch.no_grad():
        single = one.energy_and_forces(numbers, positions, CELL[None])
        whole = many.energy_and_forces(numbers.repeat(1, 27), repeated, 3 * CELL[None])
    assert float(whole.energies) == pytest.approx(27 * float(single.energies), abs=1e-9)
    torch.testing.assert_close(whole.forces.view(27, 2, 3), single.forces.expand(27, 2, 3), atol=1e-9, rtol=1e-9)


def test_turning_moving_and_renaming_atoms_change_nothing() -> None:
    model, positions = toy(), places()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    order = torch.tensor([2, 3, 1, 0])
    with torch.no_grad():
        plain, forces = model.energy_and_forces(NUMBERS, positions)
        turned = model.energy_and_forces(NUMBERS, positions @ turn + torch.tensor([5.0, -3.0, 1.0]))
        renamed = model.energy_and_forces(NUMBERS[:, order], positions[:, order])
        crystal = model(NUMBERS, positions, CELL[None])
        turned_crystal = model(NUMBERS, positions @ turn, (CELL @ turn)[None])
        wrapped = model(NUMBERS, positions + torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64) @ CELL, CELL[None])
    for energy in (turned.energies, renamed.energies):
        torch.testing.assert_close(energy, plain)
    torch.testing.assert_close(turned.forces, forces @ turn)
    torch.testing.assert_close(renamed.forces, forces[:, order])
    torch.testing.assert_close(turned_crystal, crystal)
    torch.testing.assert_close(wrapped, crystal)


def test_padding_changes_nothing() -> None:
    model, positions = toy(), places()
    with torch.no_grad():
        padded = model.energy_and_forces(NUMBERS, positions)
        alone = model.energy_and_forces(NUMBERS[:, :3], positions[:, :3])
        mean = toy(readout="mean")(NUMBERS, positions)
    torch.testing.assert_close(padded.energies, alone.energies)
    torch.testing.assert_close(padded.forces[:, :3], alone.forces)
    assert not padded.forces[:, 3].any()
    torch.testing.assert_close(mean * 3, alone.energies)


@torch.no_grad()
def test_interactions_end_smoothly_at_the_cutoff() -> None:
    """Two atoms: beyond the cutoff the energy is that of both alone, and just before it nearly so, forces too."""
    model, numbers = toy(), torch.tensor([[8, 6]])

    def at(distance: float) -> tuple[float, float]:
        found = model.energy_and_forces(numbers, torch.tensor([[[0, 0, 0], [distance, 0, 0]]], dtype=torch.float64))
        return float(found.energies), float(found.forces.abs().max())

    apart = float(sum(model(torch.tensor([[number]]), torch.zeros(1, 1, 3, dtype=torch.float64)) for number in (8, 6)))
    assert at(4.0) == pytest.approx((apart, 0), abs=1e-12)
    assert at(3.999) == pytest.approx((apart, 0), abs=1e-3)
    assert at(2.0)[0] != pytest.approx(apart, abs=1e-3)


# --- forces


@pytest.mark.parametrize("cell", [None, CELL[None]], ids=["molecule", "crystal"])
def test_forces_are_the_slope_of_the_energy(cell: Tensor | None) -> None:
    model, positions = toy(), places()
    with torch.no_grad():
        forces = model.energy_and_forces(NUMBERS, positions, cell).forces
        step, slopes = 1e-5, torch.zeros_like(positions)
        for atom, axis in itertools.product(range(4), range(3)):
            moved = torch.zeros_like(positions)
            moved[0, atom, axis] = step
            rise = model(NUMBERS, positions + moved, cell) - model(NUMBERS, positions - moved, cell)
            slopes[0, atom, axis] = float(rise) / (2 * step)
    torch.testing.assert_close(forces, -slopes, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(forces.sum(dim=1), torch.zeros(1, 3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forces_without_gradients_around(mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    model = toy()
    with_gradients = model.energy_and_forces(NUMBERS, places(), CELL[None])
    with mode():
        found = model.energy_and_forces(NUMBERS.clone(), places(), CELL[None].clone())
    assert not found.forces.requires_grad and not found.energies.requires_grad
    torch.testing.assert_close(found.forces, with_gradients.forces.detach())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_forces(checkpointing: bool) -> None:
    model = toy(gradient_checkpointing=checkpointing).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = {"atomic_numbers": NUMBERS, "positions": places()}
    target = torch.tensor([[[0.3, 0, 0], [-0.1, 0.2, 0], [-0.2, -0.2, 0], [0, 0, 0]]], dtype=torch.float64)
    losses = []
    for _ in range(30):
        energies, forces = model.energy_and_forces(**inputs)
        loss = (forces - target).square().sum() + energies.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_atoms_on_one_place_give_no_nan() -> None:
    found = toy().energy_and_forces(torch.tensor([[1, 1, 6]]), torch.zeros(1, 3, 3, dtype=torch.float64))
    assert bool(torch.isfinite(found.energies).all()) and bool(torch.isfinite(found.forces).all())


# --- parts


def test_basis_cutoff_and_activation_are_the_papers() -> None:
    """Centres every 0.1 angstrom up to 30, gamma 10: `schnet-qm9`, apart from a centre more or less."""
    distances = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    found = GaussianBasis(3.0, 31, gamma=10.0)(distances)
    wanted = [[math.exp(-10 * (float(d) - 0.1 * k) ** 2) for k in range(31)] for d in distances]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert GaussianBasis(3.0, 31).gamma == pytest.approx(0.5 / 0.1**2)
    torch.testing.assert_close(
        cosine_cutoff(distances, 2.0), torch.tensor([1, 0.5 * (math.cos(math.pi / 4) + 1), 0.5, 0]).double()
    )
    assert float(shifted_softplus(torch.zeros(()))) == 0


def test_reciprocal_is_the_inverse() -> None:
    torch.testing.assert_close(reciprocal(CELL[None])[0], torch.linalg.inv(CELL).T)


def test_nearest_images_are_the_nearest() -> None:
    cube = torch.eye(3, dtype=torch.float64)[None] * 2
    positions = torch.tensor([[[0.1, 0, 0], [1.9, 0, 0]]], dtype=torch.float64)
    found = pair_vectors(positions, cube)[0, 0, 1, 0]
    torch.testing.assert_close(found, torch.tensor([-0.2, 0, 0], dtype=torch.float64))


def test_as_many_weights_as_pytorch_geometrics_default() -> None:
    """455,809 for 128 features, 6 interactions and 50 Gaussians; its table of elements has 100 rows."""
    config = SchNetConfig(max_atomic_number=99, d_model=128, num_interactions=6, num_radial=50, cutoff=10.0)
    with torch.device("meta"):
        model = SchNet(config)
        papers = build("schnet-qm9")
    assert sum(p.numel() for p in model.parameters()) == 455_809
    assert sum(p.numel() for p in papers.parameters()) == 101 * 64 + 3 * 35_840 + 64 * 32 + 32 + 32 + 1


# --- compilers and bad input


def test_crystals_compile_and_export() -> None:
    model = toy()
    inputs = {"atomic_numbers": NUMBERS, "positions": places(), "cell": CELL[None]}
    with torch.no_grad():
        wanted = model(**inputs)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs), wanted)
        program = torch.export.export(model, (), inputs)
        torch.testing.assert_close(program.module()(**inputs), wanted)


def test_a_cell_smaller_than_the_cutoff_names_the_setting() -> None:
    with pytest.raises(ModelError, match="set image_shells to 1") as caught:
        toy(image_shells=0)(NUMBERS, places(), CELL[None])
    assert "cutoff" in str(caught.value)
    with pytest.raises(ModelError, match="set image_shells to 2"):
        toy(image_shells=1)(NUMBERS, places(), CELL[None] * 0.5)
    with pytest.raises(ModelError, match="independent"):
        toy()(NUMBERS, places(), torch.zeros(1, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("atomic_numbers", torch.tensor([[1, 1, 11, 1]])),
        ("atomic_numbers", torch.tensor([[1, 1, -1, 1]])),
        ("atomic_numbers", torch.ones(1, 4)),
        ("positions", torch.zeros(1, 3, 3)),
        ("positions", torch.zeros(1, 4, 2)),
        ("cell", torch.eye(3)),
    ],
)
def test_bad_input_is_named(name: str, value: Tensor) -> None:
    inputs = {"atomic_numbers": NUMBERS, "positions": places(), name: value}
    with pytest.raises(ModelError, match=name):
        toy()(**inputs)
