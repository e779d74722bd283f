"""Quantized graphs: the same answers as the int8 layers they come from, more edges in 8 bits, and typed errors."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import QuantizationError
from deepseek.export.qdq import QdqConfig, QuantizedProgram, quantized_program
from deepseek.export.qdq.graph import QUANTIZE, passes_on
from deepseek.models.factory import build
from deepseek.nn.fold_norm import fold_norms
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.quantization.report import sqnr_db

TOYS = Path(__file__).parent.parent / "toys"
STATIC = QuantConfig(method="static", quant_scheme="asymmetric", calibration="minmax")
MINMAX = QdqConfig(calibration="minmax")
Inputs = dict[str, Tensor]


class Small(nn.Module):
    """A residual block of linear layers, and an operation that no pass here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return x + self.down(torch.fft.rfft(hidden, dim=-1, norm="ortho").abs().repeat(1, 2)[:, :16])


def batches(count: int = 3, size: int = 4) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(size, 8, generator=generator)} for _ in range(count)]


def toy(name: str, config: QdqConfig = MINMAX) -> tuple[nn.Module, nn.Module, QuantizedProgram, Inputs]:
    """Return the float model with its norms folded, its int8 copy, the graph of that, and an input."""
    torch.manual_seed(11)
    model = build(TOYS / f"{name}.yaml").eval()
    inputs: Inputs = model.example_inputs(3)  # type: ignore[operator]
    fold_norms(model, inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="calibration never reached heads")  # U-Net++'s, for training only
        quantized = quantize_model(model, STATIC, [inputs])
    axes = {key: ("batch",) + (None,) * (value.dim() - 1) for key, value in inputs.items()}
    return model, quantized, quantized_program(quantized, inputs, axes, [inputs], config), inputs


def small(config: QdqConfig = MINMAX) -> tuple[nn.Module, QuantizedProgram]:
    torch.manual_seed(0)
    quantized = quantize_model(Small(), STATIC, batches())
    return quantized, quantized_program(quantized, batches(1)[0], {"x": ("batch", None)}, batches(), config)


def rounded(node: torch.fx.Node) -> bool:
    """Return whether a node's values are 8-bit levels: rounded there, or passed on from such."""
    sources = passes_on(node)
    return node.target is QUANTIZE or bool(sources and all(rounded(source) for source in sources))


def only(found: object) -> Tensor:
    return found if isinstance(found, Tensor) else next(iter(found))  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_without_further_edges_the_graph_is_the_int8_model(name: str) -> None:
    _, quantized, program, inputs = toy(name, QdqConfig(edges=False))
    with torch.no_grad():
        wanted = only(quantized(**inputs))
    found = next(iter(program.run(inputs).values()))
    assert sqnr_db(wanted, found) > 50  # the layers multiply integers, the graph floats: a value may round otherwise
    assert {edge.reason for edge in program.edges} == {"layer input"}


def test_an_unknown_operation_stays_and_any_batch_size_runs() -> None:
    quantized, program = small()
    for size in (1, 2, 9):
        inputs = batches(1, size)[0]
        with torch.no_grad():
            assert sqnr_db(quantized(**inputs), program.run(inputs)["output"]) > 60
    assert program.layers == ("up", "down") and len(program.edges) == 2


def test_the_model_gets_its_layers_back() -> None:
    quantized = quantize_model(Small(), STATIC, batches())
    before = dict(quantized.named_modules())
    quantized_program(quantized, batches(1)[0], {"x": ("batch", None)}, batches())
    assert dict(quantized.named_modules()) == before
    assert isinstance(quantized.get_submodule("up"), Int8Linear)


def test_a_residual_network_stays_in_eight_bits_from_end_to_end() -> None:
    model, _, program, inputs = toy("resnet")
    graph = program.program.graph
    readers = [n for n in graph.nodes if str(n.target).startswith(("aten.add", "aten.max_pool2d", "aten.mean"))]
    readers = [n for n in readers if n.all_input_nodes[0].meta["val"].dim() == 4]
    assert {str(n.target).partition(".")[2].partition(".")[0] for n in readers} == {"add", "max_pool2d", "mean"}
    for node in readers:
        assert all(rounded(source) for source in node.all_input_nodes), node
    reasons = Counter(edge.reason for edge in program.edges)
    assert reasons["residual"] >= 1 and reasons["pooling"] == 1
    with torch.no_grad():
        assert sqnr_db(model(**inputs), program.run(inputs)["logits"]) > 20


def test_both_sides_of_attention_scores_are_rounded_and_its_weights_are_not() -> None:
    model, _, program, inputs = toy("bert")
    products = [n for n in program.program.graph.nodes if str(n.target) == "aten.matmul.default"]
    scores = [n for n in products if any("softmax" in str(u.target) for u in _readers(n, 3))]
    assert len(scores) == 2 and all(rounded(s) for n in scores for s in n.all_input_nodes)
    over_values = [n for n in products if any("softmax" in str(s.target) for s in n.all_input_nodes)]
    assert len(over_values) == 2 and not any(rounded(s) for n in over_values for s in n.all_input_nodes)
    with torch.no_grad():
        assert sqnr_db(only(model(**inputs)), next(iter(program.run(inputs).values()))) > 20


def test_without_batches_only_known_levels_are_used() -> None:
    quantized = quantize_model(Small(), STATIC, batches())
    program = quantized_program(quantized, batches(1)[0], {"x": ("batch", None)})
    assert {edge.reason for edge in program.edges} == {"layer input"}


def test_symmetric_ranges_become_signed_levels_and_the_others_unsigned() -> None:
    config = STATIC.replace(quant_scheme="symmetric")
    quantized = quantize_model(Small(), config, batches())
    program = quantized_program(quantized, batches(1)[0], {"x": ("batch", None)}, batches())
    assert all(edge.signed and edge.zero_point == 0 for edge in program.edges)
    assert all(not edge.signed and 0 <= edge.zero_point <= 255 for edge in small()[1].edges)


def test_a_float_model_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(QuantizationError, match="no static int8 layer") as caught:
        quantized_program(Small(), batches(1)[0], {"x": ("batch", None)}, batches())
    assert "method='static'" in str(caught.value)


class Product(nn.Module):
    """A product whose operands must be calibrated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) @ self.right(x).transpose(-1, -2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no batches"),
        ([{"y": torch.zeros(2, 4, 8)}], "lacks the input 'x'"),
        ([{"x": torch.zeros(2, 4, 7)}], "batch 1 does not run"),
        ([{"x": torch.full((2, 4, 8), torch.nan)}], "not finite"),
    ],
)
def test_bad_calibration_is_refused(bad: list[Inputs], message: str) -> None:
    inputs = {"x": torch.randn(2, 4, 8)}
    quantized = quantize_model(Product(), STATIC, [inputs])
    with pytest.raises(QuantizationError, match=message):
        quantized_program(quantized, inputs, {"x": ("batch", None, None)}, bad)


def _readers(node: torch.fx.Node, steps: int) -> list[torch.fx.Node]:
    found = list(node.users)
    return found + [far for near in found for far in _readers(near, steps - 1)] if steps else found
