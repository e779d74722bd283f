"""Products of rows: against float64, against torch, and each row the same to the bit whatever other rows there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.models.llama import Llama, LlamaConfig
from deepseek.nn import native_build, row_products
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.row_blocks import RowDecoderBlock, RowLlamaBlock
from deepseek.nn.row_linear import RowEmbedding, RowLinear
from deepseek.nn.row_products import LookUp, Multiply, Rotate, RowChain, RowNorm
from deepseek.nn.row_weight import RowForm, RowWeight
from deepseek.serve.text.weights import prepare_weights
from tests.native_ways import WAYS, take

FORMS: tuple[RowForm, ...] = ("fp32", "bf16", "int8", "int4")
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3, "int8": 1e-4, "int4": 1e-2}
"""Of the largest answer: what the form's rounding of the inputs costs; the weights are taken as rounded."""


def weight_of(form: RowForm, outputs: int, inputs: int, bias: bool = True) -> RowWeight:
    return RowWeight.rounded(torch.randn(outputs, inputs), form, torch.randn(outputs) if bias else None)


def times(x: Tensor, weight: RowWeight) -> Tensor:
    y = torch.full((x.shape[0], weight.out_features), torch.nan)
    RowChain([Multiply(weight, 0, 1)]).run([x, y])
    return y


def wanted(x: Tensor, weight: RowWeight) -> Tensor:
    y = x.double() @ weight.rows().double().T
    return y if weight.bias is None else y + weight.bias.double()


def gap(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel for this processor, the one for any other, and none."""
    return take(request.param, row_products, monkeypatch)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (37, 96), (64, 160), (130, 768), (33, 1056)])
def test_products_are_what_float64_says(way: str, form: RowForm, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight = weight_of(form, outputs, inputs, bias=outputs % 2 == 0)
    x = torch.randn(5, inputs) * torch.rand(5, 1) * 9
    assert gap(times(x, weight), wanted(x, weight)) < TOLERANCE[form]


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("inputs", [1, 3, 17, 31, 33, 65, 129])
def test_any_number_of_inputs(way: str, form: RowForm, inputs: int) -> None:
    weight, x = weight_of(form, 9, inputs), torch.randn(3, inputs)
    assert gap(times(x, weight), wanted(x, weight)) < TOLERANCE[form]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_the_others(form: RowForm) -> None:
    if row_products.library() is None:
        pytest.skip(row_products.describe_kernel())
    weight, x = weight_of(form, 101, 416), torch.randn(40, 416)
    whole = times(x, weight)
    for rows in range(1, 40):
        assert torch.equal(times(x[:rows], weight), whole[:rows])
    assert torch.equal(torch.cat([times(row[None], weight) for row in x]), whole)
    many = torch.randn(1100, 416)  # more than one panel, and more than one slice
    many[1000:1040] = x
    assert torch.equal(times(many, weight)[1000:1040], whole)


@pytest.mark.parametrize("form", FORMS)
def test_threads_change_nothing(form: RowForm) -> None:
    weight, x = weight_of(form, 515, 640), torch.randn(7, 640)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = times(x, weight)
        torch.set_num_threads(2)
        if row_products.library() is not None:
            assert all(torch.equal(times(x, weight), alone) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(form: RowForm, wrong: float) -> None:
    weight, x = weight_of(form, 20, 64), torch.randn(3, 64)
    clean = times(x, weight)
    x[1, 7] = wrong
    found = times(x, weight)
    assert torch.equal(found[[0, 2]], clean[[0, 2]]) and not found[1].isfinite().any()


def test_int8_rows_are_exact_integers() -> None:
    """The longest sums of the largest integers fit: nothing saturates or wraps."""
    for inputs in (256, 8192, 20000):
        values = torch.full((3, inputs), 127, dtype=torch.int8)
        values[1] = -127
        weight, x = RowWeight.packed("int8", values, torch.ones(3)), torch.full((2, inputs), 3.0)
        assert gap(times(x, weight), wanted(x, weight)) < 1e-6


def test_zero_rows_and_zero_points(way: str) -> None:
    levels = torch.randint(0, 256, (11, 80), dtype=torch.uint8)
    zero = torch.randint(0, 16, (11, 5), dtype=torch.uint8)
    weight = RowWeight.packed("int4", levels, torch.rand(11, 5).bfloat16(), zero)
    x = torch.cat([torch.randn(4, 160), torch.zeros(1, 160)])
    assert gap(times(x, weight), wanted(x, weight)) < TOLERANCE["int4"]
    assert not times(x, weight)[4].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_chain_is_its_steps(way: str, form: RowForm, kind: Any) -> None:
    torch.manual_seed(3)
    up, gate, down = weight_of(form, 96, 64), weight_of(form, 96, 64), weight_of(form, 64, 96, bias=False)
    norm = RowNorm(kind, torch.rand(64) + 0.5, torch.randn(64) if kind == "layer" else None, 1e-5)
    x = torch.randn(6, 64) * 2
    for activation, other in (("gelu", None), ("silu", gate)):
        steps = [
            Multiply(up, 0, 1, norm=norm, activation=activation, up=other),  # type: ignore[arg-type]
            Multiply(down, 1, 2, residual=0),
        ]
        wide, y = torch.empty(6, 96), torch.empty(6, 64)
        RowChain(steps).run([x, wide, y])
        d = x.double()
        if norm.bias is not None:
            read = F.layer_norm(d, (64,), norm.weight.double(), norm.bias.double(), 1e-5)
        else:
            read = F.rms_norm(d, (64,), norm.weight.double(), 1e-5)
        inner = F.gelu(wanted(read, up), approximate="tanh") if other is None else F.silu(wanted(read, up))
        inner = inner if other is None else inner * wanted(read, other)
        assert gap(wide, inner) < 2 * TOLERANCE[form]
        assert gap(y, wanted(wide, down) + d) < 2 * TOLERANCE[form]


def test_activations_far_out() -> None:
    eye = RowWeight.rounded(torch.eye(64), "fp32")
    x = torch.linspace(-120, 120, 64)[None].contiguous()
    for activation, reference in (("silu", F.silu), ("gelu", lambda v: F.gelu(v, approximate="tanh"))):
        y = torch.empty(1, 64)
        RowChain([Multiply(eye, 0, 1, activation=activation)]).run([x, y])  # type: ignore[arg-type]
        torch.testing.assert_close(y, reference(x.double()).float(), rtol=2e-6, atol=1e-6)


def test_columns_and_rotation(way: str) -> None:
    first, second = weight_of("fp32", 32, 48), weight_of("fp32", 16, 48)
    x, angle = torch.randn(5, 48), torch.randn(5, 4)
    y = torch.zeros(5, 50)
    steps = [Multiply(first, 0, 1), Multiply(second, 0, 1, 32, again=True), Rotate(1, 32, 8, 2, 3)]
    RowChain(steps).run([x, y, angle.cos(), angle.sin()])
    plain = wanted(x, first).unflatten(1, (4, 8))
    cos, sin = angle.double().cos()[:, None], angle.double().sin()[:, None]
    a, b = plain.chunk(2, dim=2)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2).flatten(1)
    torch.testing.assert_close(y[:, :48].double(), torch.cat([turned, wanted(x, second)], 1), rtol=1e-5, atol=1e-5)
    assert not y[:, 48:].any()


def test_without_a_compiler_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_build.SWITCH, "0")
    assert row_products.describe_kernel().startswith("none: ")
    monkeypatch.setattr(row_products, "library", lambda: None)
    for form in FORMS:
        layer = RowLinear(weight_of(form, 12, 64))
        x = torch.randn(2, 3, 64)
        assert gap(layer(x).flatten(0, 1), wanted(x.flatten(0, 1), layer.row_weight)) < TOLERANCE[form]


def test_layers_take_any_dtype_and_give_gradients() -> None:
    layer = RowLinear(weight_of("bf16", 12, 64))
    assert layer(torch.randn(4, 64).bfloat16()).dtype == torch.bfloat16
    assert layer(torch.randn(0, 64)).shape == (0, 12)
    x = torch.randn(4, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], layer.dequantized_weight().sum(0))
    with pytest.raises(ModelError, match="groups"):
        RowWeight.rounded(torch.randn(4, 33), "int4")


GPT_CONFIG = GPTConfig(vocab_size=90, max_length=48, num_layers=2, d_model=64, num_heads=4)
LLAMA_CONFIG = LlamaConfig(
    vocab_size=90, max_length=48, num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, qkv_bias=True
)


def fresh(config: GPTConfig | LlamaConfig) -> GPT | Llama:
    torch.manual_seed(0)
    model: GPT | Llama = GPT(config) if isinstance(config, GPTConfig) else Llama(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    return model.eval()


@pytest.mark.parametrize("config", [GPT_CONFIG, LLAMA_CONFIG], ids=["gpt", "llama"])
@pytest.mark.parametrize(("form", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.03), ("int4", 0.3)])
def test_a_prepared_model_answers_as_before(way: str, config: Any, form: RowForm, tolerance: float) -> None:
    model, ids = fresh(config), torch.randint(90, (2, 20))
    with torch.no_grad():
        before = model(ids)
        prepared = prepare_weights(model, form)
        changed = [isinstance(block, RowDecoderBlock | RowLlamaBlock) for block in model.blocks]
        assert not any(changed) if way == "torch" else all(changed)
        assert gap(prepared(ids), before.double()) < tolerance
        cache = model.new_cache(2, 20)
        pieces = [model(piece, cache=cache) for piece in ids.split([7, 1, 12], dim=1)]
    assert gap(torch.cat(pieces, 1), before.double()) < tolerance


@pytest.mark.parametrize("form", FORMS)
def test_tied_weights_are_stored_once(form: RowForm) -> None:
    model = prepare_weights(fresh(GPT_CONFIG), form)
    table, head = model.get_submodule("token_embedding"), model.get_submodule("lm_head")
    assert isinstance(table, RowEmbedding) and isinstance(head, RowLinear)
    assert table.weight is head.weight and (form != "int4" or table.form == "int8")
    stored = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    plain = {t.data_ptr(): t.nbytes for t in fresh(GPT_CONFIG).parameters()}
    share = {"fp32": 1.02, "bf16": 0.53, "int8": 0.3, "int4": 0.2}[form]
    assert sum(stored.values()) <= share * sum(plain.values())


def test_auto_loses_nothing() -> None:
    model = prepare_weights(fresh(LLAMA_CONFIG))
    assert isinstance(model.lm_head, RowLinear) and model.lm_head.form == "fp32"
    short = prepare_weights(fresh(LLAMA_CONFIG).bfloat16())
    assert isinstance(short.lm_head, RowLinear) and short.lm_head.form == "bf16"
    back = fresh(LLAMA_CONFIG).bfloat16().float()
    assert isinstance(prepare_weights(back).lm_head, RowLinear) and back.lm_head.form == "bf16"
    assert prepare_weights(back, "int8").lm_head.form == "bf16"  # prepared once, for good


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, None])
def test_layers_with_few_bits_keep_their_numbers(symmetric: bool, group: int | None) -> None:
    for linear in (nn.Linear(64, 20), nn.Linear(64, 20, bias=False)):
        quantized = (Int4Linear.from_linear(linear, group, symmetric), Int8Linear.from_linear(linear, "dynamic"))
        for layer in quantized:
            meant = layer.dequantized_weight()
            prepared = prepare_weights(nn.Sequential(layer), "bf16")[0]  # type: ignore[index]
            assert isinstance(prepared, RowLinear) and torch.equal(prepared.dequantized_weight(), meant)
            x = torch.randn(3, 64)
            with torch.no_grad():
                reference = F.linear(x, meant, linear.bias).double()
                assert gap(prepared(x), reference) < 0.01


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_read_back(form: RowForm) -> None:
    """Panels hold what was given, and nothing of their filling comes out."""
    weight = torch.randn(77, 96)
    found, ids = RowWeight.rounded(weight, form), torch.tensor([[76, 0], [31, 32]])
    assert gap(found.rows(), weight.double()) < {"fp32": 1e-9, "bf16": 4e-3, "int8": 1e-2, "int4": 0.2}[form]
    assert torch.equal(found.rows(ids), found.rows()[ids])


def test_vectors_are_looked_up(way: str) -> None:
    ids = torch.tensor([[40], [0], [33]])
    for form in ("fp32", "bf16", "int8"):
        table, y, plus = weight_of(form, 41, 30), torch.empty(3, 30), torch.randn(3, 30)
        RowChain([LookUp(table, 0, 1), LookUp(table, 0, 1, residual=2)]).run([ids, y, plus])
        assert torch.equal(y, table.rows(ids[:, 0]) + plus)


def test_what_a_source_includes_names_the_library(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text('#include "b.h"\nint x;\n')
    (tmp_path / "b.h").write_text("int y;\n")
    before = native_build._text(tmp_path / "a.cpp")
    (tmp_path / "b.h").write_text("int z;\n")
    assert before != native_build._text(tmp_path / "a.cpp")


def test_other_models_are_left_to_torch() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.LSTM(32, 32))
    assert prepare_weights(model) is model and type(model[0]) is nn.Linear
    assert prepare_weights(model, "bf16")[0].weight.dtype == torch.bfloat16  # type: ignore[index, union-attr]
    swapped = prepare_weights(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8), nn.Conv1d(8, 8, 1)), "int4")
    assert isinstance(swapped[0], Int4Linear) and isinstance(swapped[1], Int8Linear)  # type: ignore[index]
