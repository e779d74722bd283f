"""Every template goes into a bundle and comes back with the same answers; its golden samples notice other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import deepseek as ds
from deepseek.errors import BundleError
from deepseek.models import build

TOYS = sorted((Path(__file__).parent.parent / "toys").glob("*.yaml"))


@pytest.mark.parametrize("toy", TOYS, ids=lambda path: path.stem)
def test_a_template_survives_its_bundle(toy: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(toy).eval()
    ds.save(model, tmp_path / "bundle")
    bundle = ds.load(tmp_path / "bundle", device="cpu")
    bundle.verify()
    example = model.example_inputs(2)  # type: ignore[operator]
    with torch.no_grad():
        pairs = zip(tree_leaves(model(**example)), tree_leaves(bundle.model(**example)), strict=True)
        for mine, theirs in pairs:
            if isinstance(mine, Tensor):
                torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.mul_(1.3).add_(0.3)
    with pytest.raises(BundleError, match="differently than when it was saved"):
        bundle.verify()
