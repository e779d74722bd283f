"""An ahead-of-time package: written, loaded where the model's source is absent, and held to its signature."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import deepseek as ds
from deepseek.errors import ModelError
from deepseek.export import export_aot
from deepseek.quantization import quantize_model
from tests.toy_language_model import VOCABULARY, ToyLanguageModel

CHILD = """
import sys, torch
import deepseek as ds
torch.set_num_threads(1)
package = ds.static.load(sys.argv[1])
ids = torch.load(sys.argv[2], weights_only=True)
torch.save([package(input_ids=part) for part in ids], sys.argv[3])
assert not any("toy_language_model" in name for name in sys.modules)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: nothing to compile with")
def test_a_package_runs_without_the_source_of_its_model(tmp_path: Path) -> None:
    model = quantize_model(ToyLanguageModel(num_layers=1))
    path = tmp_path / "model.pt2"
    checks = ds.static(model, model.example_inputs(2)).save(path, tolerance=0.05)
    assert [check.shape for check in checks] == [(1, 1), (2, 12), (3, 11), (1, 12)]
    assert [found.name for found in tmp_path.iterdir()] == ["model.pt2"]

    ids = [torch.randint(VOCABULARY, shape) for shape in ((1, 1), (3, 24))]
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [str(path), str(tmp_path / "ids.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, timeout=100)
    with torch.no_grad():
        for part, found in zip(ids, torch.load(tmp_path / "out.pt", weights_only=True), strict=True):
            torch.testing.assert_close(found, model(part), rtol=0.05, atol=0.05)

    package = ds.static.load(path)
    assert package(ids[0]).shape == (1, 1, VOCABULARY)
    for wrong in (ids[0].float(), torch.zeros(1, 25, dtype=torch.int64), ids[0][0]):
        with pytest.raises(ModelError):
            package(wrong)
    with pytest.raises(ModelError, match="too many inputs"):
        package(ids[0], ids[0])


class Pair(NamedTuple):
    total: Tensor
    left_out: Tensor | None
    mask: Tensor


class TwoOutputs(nn.Module):
    """Outputs of a type that no other process knows, one of them absent."""

    def forward(self, x: Tensor, weights: Tensor) -> Pair:
        return Pair(x * weights.unsqueeze(-1), None, x.sum(-1) > 0)


PAIR_CHILD = """
import sys, torch
import deepseek as ds
package = ds.static.load(sys.argv[1])
found = package(torch.full((5, 7, 4), 2.0), torch.full((5, 7), 3.0))
assert list(found) == ["total", "mask"], list(found)
assert found["total"].shape == (5, 7, 4) and bool((found["total"] == 6).all()) and bool(found["mask"].all())
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: nothing to compile with")
def test_several_outputs_come_by_name_where_their_type_is_unknown(tmp_path: Path) -> None:
    example = {"x": torch.randn(2, 5, 4), "weights": torch.rand(2, 5)}
    axes = {"x": ("batch", "items", None), "weights": ("batch", "items")}
    report = export_aot(TwoOutputs(), tmp_path / "pair.pt2", example, axes=axes)
    assert report.bytes == report.path.stat().st_size
    assert [spec.shape for spec in report.signature.outputs] == [("batch", "items", 4), ("batch", "items")]
    subprocess.run([sys.executable, "-c", PAIR_CHILD, str(report.path)], check=True, timeout=100)
