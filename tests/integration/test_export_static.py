"""An ahead-of-time package: written, loaded where the model's source is absent, and held to its signature."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepseek as ds
from deepseek.errors import ModelError
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
