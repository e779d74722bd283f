"""Every public name of torch is the same object under our name, apart from the few that are ours by design.

All our modules are imported first: a module of ours called like a torch name would take its place on the package.
"""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

import deepseek as ds
from tests.contract.source_tree import modules


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


OURS = {
    "deepseek": {
        *("save", "load"),
        *("autograd", "cuda", "distributed", "export", "nn", "optim", "profiler", "quantization", "utils"),
    },
    "deepseek.autograd": set[str](),
    "deepseek.cuda": set[str](),
    "deepseek.distributed": set[str](),
    "deepseek.nn": set[str](),
    "deepseek.optim": {name for name, value in vars(torch.optim).items() if _is_optimizer(value)},
    "deepseek.profiler": set[str](),
    "deepseek.utils": {"data"},
    "deepseek.utils.data": set[str](),
}
"""Names of torch that mean something of ours; the submodules answer torch's own names inside them."""


@pytest.fixture(scope="module", autouse=True)
def _everything_imported() -> None:
    for name in modules():
        if not name.endswith("__main__"):
            importlib.import_module(name)


@pytest.mark.parametrize("path", sorted(OURS))
def test_torch_names_keep_their_identity(path: str) -> None:
    ours = importlib.import_module(path)
    theirs = importlib.import_module(path.replace("deepseek", "torch", 1))
    public = {name for name in dir(theirs) if not name.startswith("_")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of torch's names warn when they are merely looked at
        other = {name for name in public if getattr(ours, name) is not getattr(theirs, name)}
    assert len(public) > 5
    assert other == OURS[path] & public


@pytest.mark.parametrize("name", sorted(OURS["deepseek.optim"]))
def test_an_optimizer_class_stands_for_torchs(name: str) -> None:
    ours, theirs = getattr(ds.optim, name), getattr(torch.optim, name)
    assert issubclass(theirs, ours) and issubclass(ours, theirs)


def test_names_of_the_road_are_there() -> None:
    for name in ds.__all__:
        assert getattr(ds, name) is not None, name


def test_amp_is_torchs() -> None:
    assert ds.cuda.amp.autocast is torch.cuda.amp.autocast
    assert ds.cuda.amp.GradScaler is torch.cuda.amp.GradScaler
