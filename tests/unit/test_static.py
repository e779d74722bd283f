"""`ds.static`: equal to eager, whole or not at all, and as a decorator. Ahead-of-time packages are tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepseek as ds
from deepseek.errors import ExportError, ModelError
from deepseek.export.signature import Signature, TensorSpec
from deepseek.export.static import Static
from tests.toy_language_model import VOCABULARY, ToyLanguageModel


@pytest.fixture(autouse=True)
def _no_earlier_captures() -> None:
    torch._dynamo.reset()


def decide(x: Tensor) -> Tensor:
    if x.max() > 0:
        return x
    return -x


def test_a_model_answers_as_in_eager_at_several_shapes() -> None:
    model = ToyLanguageModel()
    compiled = ds.static(model, backend="eager")
    for shape in ((1, 3), (2, 12), (4, 24)):
        assert compiled.verify(torch.randint(VOCABULARY, shape)) <= 1e-6
    assert compiled.target is model


def test_both_decorator_forms_and_methods_keep_name_and_document() -> None:
    @ds.static
    def plain(x: Tensor) -> Tensor:
        """Document."""
        return x + 1

    @ds.static(backend="eager", dynamic=True)
    def chosen(x: Tensor) -> Tensor:
        return x * 2

    class Holder:
        offset = 5.0

        @ds.static(backend="eager")
        def shifted(self, x: Tensor) -> Tensor:
            return x + self.offset

    assert isinstance(plain, Static)
    assert (plain.__name__, plain.__doc__) == ("plain", "Document.")  # type: ignore[attr-defined]  # update_wrapper
    assert chosen(torch.ones(3)).tolist() == [2, 2, 2]
    assert Holder().shifted(torch.zeros(2)).tolist() == [5, 5]


def test_training_goes_through_it() -> None:
    model = nn.Linear(3, 1)
    ds.static(model, backend="aot_eager")(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad is not None and torch.equal(model.weight.grad, torch.full((1, 3), 2.0))


def test_a_graph_break_names_the_reason_and_the_line() -> None:
    with pytest.raises(ExportError, match=r"(?s)Data-dependent branching.*test_static.py:\d+: if x.max\(\) > 0:"):
        ds.static(decide)(torch.ones(3))


def test_a_break_inside_a_submodule_names_the_line_there() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return decide(x)

    with pytest.raises(ExportError, match=r"if x.max\(\) > 0:"):
        ds.static(nn.Sequential(nn.Linear(3, 3), Inner()))(torch.ones(1, 3))


def test_an_operation_that_can_not_take_the_shape_is_named() -> None:
    def fold(x: Tensor) -> Tensor:
        return x.reshape(7)

    with pytest.raises(ExportError, match=r"(?s)reshape.*invalid for input of size 3.*x.reshape\(7\)"):
        ds.static(fold, backend="eager")(torch.ones(3))


def test_too_many_shapes_is_an_error_and_not_a_slow_program(caplog: pytest.LogCaptureFixture) -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2

    fixed = ds.static(double, backend="eager", dynamic=False)
    with pytest.raises(ExportError, match=r"(?s)too many different shapes.*dynamic=True"):
        for size in range(2, 40):
            fixed(torch.ones(size))
    torch._dynamo.reset()  # code compiled for the function before counts towards its limit
    free = ds.static(double, backend="eager", dynamic=True)
    for size in range(2, 40):
        assert free(torch.ones(size)).shape == (size,)


def test_the_model_s_own_error_stays_its_own() -> None:
    with pytest.raises(ValueError, match="at most 24 tokens"):
        ds.static(ToyLanguageModel(), backend="eager")(torch.zeros(1, 25, dtype=torch.int64))


def test_a_package_that_is_none_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no package"):
        ds.static.load(tmp_path / "model.pt2")
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="can't be loaded"):
        ds.static.load(tmp_path / "model.pt2")


def test_without_a_compiler_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="no C\\+\\+ compiler"):
        ds.static(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "out" / "model.pt2")
    assert not (tmp_path / "out").exists()


def test_a_signature_survives_json_and_checks_sizes() -> None:
    inputs = (TensorSpec("ids", torch.int64, ("batch", "time")), TensorSpec("x", torch.float32, ("batch", 4)))
    signature = Signature(inputs, (TensorSpec("y", torch.float32, ("batch",)),), {"time": 8})
    assert Signature.from_json(signature.to_json()) == signature
    ids, x = torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 4)
    signature.check({"ids": ids, "x": x})
    for wrong, message in (
        ({"ids": ids, "x": x[:1]}, "'x' does not fit"),
        ({"ids": ids.float(), "x": x}, "'ids' does not fit"),
        ({"ids": torch.zeros(2, 9, dtype=torch.int64), "x": x}, "'time' is too long"),
        ({"ids": ids[0], "x": x}, "'ids' does not fit"),
    ):
        with pytest.raises(ModelError, match=message):
            signature.check(wrong)
