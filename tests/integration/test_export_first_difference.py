"""The first node that differs: found by its name, operator and module, in files made wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ParityError
from deepseek.export import export_onnx, onnx_translation
from deepseek.export.first_difference import first_difference
from deepseek.export.onnx_export import OnnxConfig
from deepseek.export.openvino_export import export_openvino
from tests.toy_language_model import ToyLanguageModel

pytest.importorskip("onnx", reason="the extra [export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("openvino", reason="the extra [export] is not installed")


@pytest.fixture
def wrong_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GELU be written as one that is a little too large."""
    op: Any = import_module("onnxscript").opset20
    own: Callable[[], dict[Any, Any]] = onnx_translation._own_translations

    def gelu(x: Any, approximate: str = "none") -> Any:
        return op.Add(op.Gelu(x), op.Constant(value_float=0.5))

    monkeypatch.setattr(onnx_translation, "_own_translations", lambda: {**own(), torch.ops.aten.gelu.default: gelu})


@pytest.mark.usefixtures("wrong_gelu")
def test_a_failed_check_names_the_node_and_nothing_is_written(tmp_path: Path) -> None:
    named = r"the first node to differ is 'gelu' \(aten.gelu.default\) in module 'blocks.0', by 0.5"
    with pytest.raises(ParityError, match=named):
        export_onnx(ToyLanguageModel(), tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=named):
        export_openvino(ToyLanguageModel(num_layers=1), tmp_path / "openvino")
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """Two branches side by side; in one of them something that a wrong file shows late."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))
        self.right = nn.Sequential(nn.Linear(4, 4), nn.GELU(), *(nn.Linear(4, 4) for _ in range(30)))

    def forward(self, x: Tensor) -> Tensor:
        return self.right(x) + self.left(x)


def test_in_a_file_that_is_there_the_search_ends_where_the_difference_begins(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, inputs = Branches(), {"x": torch.randn(3, 4)}
    right = export_onnx(model, tmp_path / "right.onnx", inputs).path
    assert first_difference(model, right, inputs, tolerance=1e-5) is None
    request.getfixturevalue("wrong_gelu")
    wrong = export_onnx(model, tmp_path / "wrong.onnx", inputs, config=OnnxConfig(tolerance=100)).path
    for openvino in (False, True):
        found = first_difference(model, wrong, inputs, tolerance=1e-7, openvino=openvino)
        assert found is not None
        assert found[:3] == ("gelu", "aten.gelu.default", "right.1")
        assert found.max_error == pytest.approx(0.5, abs=1e-4)
