"""Every template pruned: it runs, trains, is smaller, loses the removed units alone, and comes back from a bundle."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import deepseek as ds
from deepseek.compress.pruning import PruneConfig, prune_model
from deepseek.compress.pruning.groups import Group
from deepseek.compress.pruning.parts import find_groups
from tests.toy_pruned import TOYS, toy

EVERYTHING = PruneConfig(ratio=0.5, round_to=1)


def outputs(model: nn.Module, example: nn.Module | None = None) -> list[Tensor]:
    inputs = (example or model).example_inputs(2)  # type: ignore[operator]
    return [leaf for leaf in tree_leaves(model(**inputs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def zero_half(model: nn.Module, groups: list[Group]) -> None:
    """Set all weights of a random half of each group's units to zero."""
    with torch.no_grad():
        for group in groups:
            gone = torch.randperm(group.count)[: group.count - max(1, round(group.count / 2))]
            for part in group.slices:
                tensor = dict(model.named_parameters()).get(part.tensor)
                if tensor is not None:
                    tensor.index_fill_(part.dim, part.index[torch.isin(part.units, gone)], 0)


@pytest.mark.parametrize("name", TOYS)
def test_units_that_are_zero_go_without_a_trace(name: str) -> None:
    model = toy(name)
    groups = find_groups(model, model.example_inputs(2), EVERYTHING, set(), {})  # type: ignore[operator]
    zero_half(model, groups)
    small, report = prune_model(model, EVERYTHING)
    assert set(report.kept) == {group.name for group in groups}
    with torch.no_grad():
        for mine, whole in zip(outputs(small, model), outputs(model), strict=True):
            torch.testing.assert_close(mine, whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOYS)
def test_a_pruned_template_is_smaller_trains_and_survives_its_bundle(name: str, tmp_path: Path) -> None:
    model = toy(name)
    before = copy.deepcopy(model.state_dict())
    small, report = prune_model(model, EVERYTHING)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert report.parameters == (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in small.parameters()))
    assert report.parameters[1] < report.parameters[0] and report.flops[1] < report.flops[0]
    assert [t.shape for t in outputs(small, model)] == [t.shape for t in outputs(model)]
    assert with_gradient(small.train(), model) == with_gradient(model, model)
    ds.save(small.eval(), tmp_path / "bundle")
    bundle = ds.load(tmp_path / "bundle", device="cpu")
    bundle.verify()
    with torch.no_grad():
        for mine, loaded in zip(outputs(small, model), outputs(bundle.model, model), strict=True):
            assert torch.equal(mine, loaded)
    if model.state_dict().keys() == small.state_dict().keys():
        assert (tmp_path / "bundle" / "model.safetensors").stat().st_size < 4.2 * report.parameters[0] + 9000


def with_gradient(model: nn.Module, example: nn.Module) -> set[str]:
    model.zero_grad()
    sum(output.square().mean() for output in outputs(model.eval(), example)).backward()  # type: ignore[union-attr]
    return {name for name, weight in model.named_parameters() if weight.grad is not None}


LISTS = [name for name in TOYS if name in {"bert", "llama", "t5", "swin", "mobilenet_v2"}]


@pytest.mark.parametrize("name", LISTS)
def test_whole_layers_go_and_later_prunings_add_up(name: str, tmp_path: Path) -> None:
    model = toy(name)
    first, report = prune_model(model, PruneConfig(what=["layers", "ffn"] if name != "mobilenet_v2" else ["layers"]))
    lists = [key for key, counts in report.kept.items() if isinstance(model.get_submodule(key), nn.ModuleList)]
    assert lists
    for key in lists:
        assert len(first.get_submodule(key)) == report.kept[key][1] < report.kept[key][0]  # type: ignore[arg-type]
    again, _ = prune_model(first, PruneConfig(ratio=0.3, round_to=1))
    ds.save(again, tmp_path / "bundle")
    loaded = ds.load(tmp_path / "bundle", device="cpu").model
    with torch.no_grad():
        for mine, theirs in zip(outputs(again), outputs(loaded), strict=True):
            assert torch.equal(mine, theirs)
