"""What a type checker knows of our names; `make check` runs mypy over it, nothing runs the code."""

from __future__ import annotations

from typing import assert_type

import torch

import deepseek as ds


def torch_names_have_torch_types() -> None:
    """Names that come from torch, in our packages."""
    assert_type(ds.nn.Linear(1, 2), torch.nn.Linear)
    assert_type(ds.nn.functional.relu(torch.zeros(1)), torch.Tensor)
    assert_type(ds.cuda.amp.GradScaler(), torch.cuda.amp.GradScaler)


def our_names_have_our_types() -> None:
    """Names of ours, also where torch has one of that name."""
    model = ds.GPT(ds.GPTConfig(vocab_size=8, max_length=8, num_layers=1, d_model=8))
    assert_type(model, ds.GPT)
    ds.save(model, "bundle")
    torch.nn.Module.eval(ds.load("bundle").model)
