"""An ahead-of-time package: written, loaded where the model's source is absent, and held to its signature."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deepseek.export import export_aot

MAKER = """
import json, sys, torch
import deepseek as ds
from deepseek.quantization import quantize_model
from tests.toy_language_model import VOCABULARY, ToyLanguageModel
model = quantize_model(ToyLanguageModel(num_layers=1))
checks = ds.static(model, model.example_inputs(2)).save(sys.argv[1], tolerance=0.05)
ids = [torch.randint(VOCABULARY, shape) for shape in ((1, 1), (3, 24))]
with torch.no_grad():
    torch.save((ids, [model(part) for part in ids]), sys.argv[2])
print(json.dumps([check.shape for check in checks]))
"""

CHILD = """
import sys, torch
import deepseek as ds
from deepseek.errors import ModelError
torch.set_num_threads(1)
package = ds.static.load(sys.argv[1])
ids, _ = torch.load(sys.argv[2], weights_only=True)
torch.save([package(input_ids=part) for part in ids], sys.argv[3])
assert not any("toy_language_model" in name for name in sys.modules)
for wrong in ((ids[0].float(),), (torch.zeros(1, 25, dtype=torch.int64),), (ids[0][0],), (ids[0], ids[0])):
    try:
        package(*wrong)
    except ModelError as error:
        print(error.problem)
"""


def in_a_process(code: str, *arguments: Path) -> str:
    """Run Python code from the root of the project; return what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, check=True, timeout=100, stdout=subprocess.PIPE, text=True, cwd=root).stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: nothing to compile with")
def test_a_package_runs_without_the_source_of_its_model(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    path, asked, answered = tmp_path / "packages" / "model.pt2", tmp_path / "ids.pt", tmp_path / "out.pt"
    checks = json.loads(in_a_process(MAKER, path, asked))
    assert checks == [[1, 1], [2, 12], [3, 11], [1, 12]]
    assert [found.name for found in path.parent.iterdir()] == ["model.pt2"]
    said = in_a_process(CHILD, path, asked, answered).splitlines()
    assert len(said) == 4 and said[-1] == "too many inputs", said
    _, wanted = torch.load(asked, weights_only=True)
    for exact, found in zip(wanted, torch.load(answered, weights_only=True), strict=True):
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


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
