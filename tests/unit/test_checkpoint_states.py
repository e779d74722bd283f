"""Random numbers, optimizers, weights files: what a run goes on from is set again exactly, or not at all."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepseek.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from deepseek.checkpoint.training_state import (
    optimizer_state,
    random_state,
    restore_model,
    restore_optimizer,
    restore_random_state,
    restore_states,
    states_of,
)
from deepseek.errors import CheckpointError, StorageError
from tests.system import file_size_limit


class Tied(nn.Module):
    """A model with tied weights, a buffer and two views of one tensor."""

    def __init__(self, width: int = 4, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, width, dtype=dtype)
        self.head = nn.Linear(width, 6, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(width)
        table = torch.arange(8.0)
        self.register_buffer("low", table[:4])
        self.register_buffer("high", table[4:])


def numbers() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()]


def test_random_numbers_go_on_where_they_were_saved(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.randn()  # both keep a second number for the next call
    path = save_checkpoint(tmp_path, 1, {"random": random_state()})
    wanted = numbers()
    torch.rand(7)
    restore_random_state(load_checkpoint(path)["random"])
    assert numbers() == wanted


def test_random_states_of_older_checkpoints_lack_some_devices() -> None:
    state = random_state()
    wanted = numbers()
    restore_random_state({key: state[key] for key in ("python", "numpy", "torch", "cuda")})
    assert numbers() == wanted


def test_an_optimizer_goes_on_bit_by_bit_from_the_disk(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])

    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, fresh = (torch.optim.AdamW(one.parameters(), lr=0.1) for one in (model, other))
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer_state(optimizer, model)}
    path = save_checkpoint(tmp_path, 1, state)
    found = load_checkpoint(path)
    restore_model(other, found["model"])
    restore_optimizer(fresh, other, found["optimizer"])
    moment = found["optimizer"]["state"]["weight"]["exp_avg"]
    assert fresh.state[other.weight]["exp_avg"].data_ptr() != moment.data_ptr()  # not over the file
    assert torch.equal(step(other, fresh), step(model, optimizer))


class Part:
    def __init__(self, number: float) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.number = state_dict["number"]


def test_parts_are_saved_by_name_and_others_refused() -> None:
    states = states_of({"scaler": Part(1.0), "ema": Part(2.0), "clipper": None})
    scaler, ema = Part(0.0), Part(0.0)
    with pytest.raises(CheckpointError, match=r"missing \['clipper'\], unexpected \['ema'\]"):
        restore_states({"scaler": scaler, "ema": None, "clipper": Part(0.0)}, states)
    assert scaler.number == 0.0
    restore_states({"scaler": scaler, "ema": ema}, states)
    assert (scaler.number, ema.number) == (1.0, 2.0)


def wrong_states() -> dict[str, tuple[dict[str, Any], str]]:
    good = Tied().state_dict()
    return {
        "a name missing": ({name: value for name, value in good.items() if name != "low"}, r"missing \[low\]"),
        "a name too many": ({**good, "more": torch.ones(1)}, r"unexpected \[more\]"),
        "a shape": ({**good, "low": torch.ones(5)}, r"other shapes \[low: \(5,\) for \(4,\)\]"),
        "a dtype": ({**good, "low": torch.ones(4).half()}, r"other dtypes \[low: torch.float16 for torch.float32\]"),
    }


@pytest.mark.parametrize("case", wrong_states())
def test_a_model_that_differs_is_left_as_it_was(case: str, tmp_path: Path) -> None:
    state, message = wrong_states()[case]
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        restore_model(model, state)
    save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_come_back_tied_and_other_programs_read_them(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, other = Tied(), Tied()
    path = save_weights(model, tmp_path / "new" / "w.safetensors", step="12", metric="0.5")
    assert os.listdir(tmp_path / "new") == ["w.safetensors"]
    stored = load_file(path)
    assert ("head.weight" in stored) != ("embed.weight" in stored)
    assert load_weights(other, path) == {"step": "12", "metric": "0.5"}
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert other.head.weight is other.embed.weight
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_weights_of_another_program_are_loaded(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(other, tmp_path / "w.safetensors") == {}
    assert torch.equal(other.weight, model.weight)


def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(2, 3), tmp_path / "w.safetensors")
    before = path.read_bytes()
    with file_size_limit(10_000), pytest.raises(StorageError):
        save_weights(nn.Linear(200, 300), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("data", [b"", b"\x80\x04\x95 a pickle", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_of_weights_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        load_weights(nn.Linear(2, 3), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_weights(nn.Linear(2, 3), tmp_path / "missing.safetensors")
