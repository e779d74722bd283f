"""`verify_trainer` on sound set-ups, and on ones broken on purpose: each fault must be found by the right check."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import DataError, ModelError
from deepseek.models.gpt import GPT
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.tasks.task import Loss
from deepseek.train.config import TrainConfig
from deepseek.train.verify import verify_trainer
from deepseek.train.verifying.batching import check_accumulation, first_layer_across_rows
from deepseek.train.verifying.case import VerifyCase, relative_difference, without_dropout
from deepseek.train.verifying.data import check_first_loss, check_leak, check_order, check_schedule
from deepseek.train.verifying.gradient import check_gradient
from deepseek.train.verifying.numbers import check_compiled, check_precision
from deepseek.train.verifying.report import Finding, VerifyReport
from deepseek.train.verifying.rows import join_rows, row_digests, same, split_rows, take_rows
from deepseek.train.verifying.runs import check_overfit, check_resume, check_same_seed
from tests.toy_gpt import toy_batches, toy_config, toy_gpt
from tests.toy_training import pairs

CONFIG = TrainConfig(learning_rate=1e-2, precision="fp32")
CROSS_ENTROPY = Supervised(nn.CrossEntropyLoss())


def network(*layers: nn.Module) -> nn.Module:
    """Return a network of 4 inputs and 2 classes with `layers` of width 8 inside."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 2))


def case_of(model: nn.Module, task: Any = CROSS_ENTROPY, batches: Any = None, **config: Any) -> VerifyCase:
    return VerifyCase(model, task, batches or pairs()[:4], CONFIG.replace(**config) if config else CONFIG, steps=4)


def gpt_case(task: Any = None, **changes: Any) -> VerifyCase:
    return case_of(GPT(toy_config(**changes)), task or LanguageModeling(), toy_batches(4))


class OwnNoise(nn.Module):
    """Noise from random numbers of the module's own: no seed and no checkpoint knows of them."""

    generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=OwnNoise.generator) if self.training else x


class UnseededDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return x * (torch.rand(x.shape, generator=generator) > 0.3)


class HiddenCounter(nn.Module):
    """Counts its steps in a plain attribute, which no state_dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x * (1 + 0.01 * self.steps)


class OtherWhenCompiled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.05 * x if torch.compiler.is_compiling() else x


class _WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 1.9 * ctx.saved_tensors[0]


class WrongSquare(nn.Module):
    """A square whose gradient says 1.9 x in place of 2 x."""

    def forward(self, x: Tensor) -> Tensor:
        return _WrongSquare.apply(x)


class MeanOfMicroBatch(LanguageModeling):
    """Divides the loss by the targets of each micro-batch, and multiplies by its rows."""

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss_sum(model, batch) / self.count(batch) * len(batch["labels"])


class Contrastive:
    """Each sample against all others of its batch, as CLIP has it."""

    name = "contrastive"

    def count(self, batch: Any) -> int:
        return len(batch["left"])

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        left, right = (F.normalize(model(batch[side]), dim=-1) for side in ("left", "right"))
        return F.cross_entropy(5 * left @ right.T, torch.arange(len(left)), reduction="sum")

    def metrics(self, mean_loss: float) -> dict[str, float]:
        return {"loss": mean_loss}

    def predict(self, model: nn.Module, inputs: Any) -> Any:
        return model(inputs)


def test_a_sound_model_passes_every_check() -> None:
    said: list[str] = []
    before = toy_gpt(dropout=0.1)
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    report = verify_trainer(
        before,
        LanguageModeling(),
        toy_batches(6),
        TrainConfig(learning_rate=1e-2),
        validation=toy_batches(2, seed=9),
        steps=4,
        say=said.append,
        backend="aot_eager",
    )
    assert report.ok, report.table()
    assert {finding.status for finding in report.findings} <= {"pass", "info", "skipped", "warning"}
    assert report["resume"].value == report["same seed"].value == 0.0
    assert all(same(value, before.state_dict()[name]) for name, value in kept.items()), "the user's model changed"
    assert torch.equal(torch.rand(3), expected), "the global random numbers moved on"
    assert len(said) == len(report.findings)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


@pytest.mark.parametrize(
    ("check", "model"),
    [
        (check_resume, lambda: network(OwnNoise())),
        (check_resume, lambda: network(HiddenCounter())),
        (check_same_seed, lambda: network(OwnNoise())),
        (check_same_seed, lambda: network(UnseededDropout())),
        (check_gradient, lambda: network(WrongSquare())),
        (check_gradient, lambda: network(UnseededDropout())),
        (lambda case: check_compiled(case, "aot_eager"), lambda: network(OtherWhenCompiled())),
    ],
)
def test_a_broken_model_is_caught(check: Callable[[VerifyCase], Finding], model: Callable[[], nn.Module]) -> None:
    assert check(case_of(model())).status == "fail"


@pytest.mark.parametrize("check", [check_resume, check_same_seed, check_gradient, check_overfit, check_accumulation])
def test_a_sound_network_with_dropout_passes(check: Callable[[VerifyCase], Finding]) -> None:
    assert check(case_of(network(nn.ReLU(), nn.Dropout(0.3)))).status == "pass"


def test_a_loss_divided_by_the_micro_batch_is_caught() -> None:
    finding = check_accumulation(gpt_case(MeanOfMicroBatch()))
    assert finding.status == "fail" and (finding.value or 0) > 0.01 and "sum" in finding.detail


def test_accumulation_is_compared_without_dropout_or_in_eval_mode_where_it_must_be() -> None:
    assert "dropout off" in check_accumulation(gpt_case(dropout=0.2)).detail
    finding = check_accumulation(case_of(network(nn.ReLU(), UnseededDropout())))
    assert finding.status == "fail"  # it has no mode in which it gives the same twice

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x

    finding = check_accumulation(case_of(network(nn.ReLU(), Noise())))
    assert finding.status == "pass" and "eval mode" in finding.detail


def test_batch_norm_is_explained_and_named() -> None:
    case = case_of(network(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)))
    finding = check_accumulation(case)
    assert finding.status == "explained" and "BatchNorm1d at layer 1" in finding.detail
    assert first_layer_across_rows(case_of(network(nn.ReLU())), pairs()[0]) is None


def test_batch_norm_excuses_no_wrong_division() -> None:
    class Mean(Supervised):
        def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
            return super().loss_sum(model, batch) / len(batch[1])

    assert check_accumulation(case_of(network(nn.BatchNorm1d(8)), Mean(nn.CrossEntropyLoss()))).status == "fail"


def test_a_contrastive_loss_is_explained() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {side: torch.randn(8, 4, generator=generator) for side in ("left", "right")}
    finding = check_accumulation(case_of(network(nn.ReLU()), Contrastive(), [batch]))
    assert finding.status == "explained" and "contrastive" in finding.detail


def test_the_wrong_layer_is_named_and_so_are_frozen_and_unused_parameters() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.sound, self.wrong, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(4, 6).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.sound(x) + self.frozen(x))
            return self.last(F.linear(x, _Scaled.apply(self.wrong.weight), self.wrong.bias))

    class _Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 1.01 * gradient

    finding = check_gradient(case_of(Parts()))
    assert finding.status == "fail" and "wrong.weight" in finding.detail.splitlines()[0]
    assert "without gradient: unused.weight, unused.bias" in finding.detail
    assert "frozen: frozen.weight, frozen.bias" in finding.detail


def test_a_weight_that_matters_and_gets_no_gradient_is_caught() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).detach())

    finding = check_gradient(case_of(Detached()))
    assert finding.status == "fail" and "first.weight" in finding.detail


def test_a_layer_without_float64_is_checked_in_float32() -> None:
    class OnlyFloat32(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("only float32 here")
            return torch.tanh(x)

    class WrongToo(OnlyFloat32):
        def forward(self, x: Tensor) -> Tensor:
            return _WrongSquare.apply(super().forward(x)) * 3

    finding = check_gradient(case_of(network(OnlyFloat32())))
    assert finding.status == "pass" and "only float32 here" in finding.detail
    assert check_gradient(case_of(network(WrongToo()))).status == "fail"


def test_kinks_are_no_wrong_gradient() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(inplace=True))]
    model = nn.Sequential(nn.Linear(4, 32), *layers, nn.Linear(32, 2))
    assert check_gradient(case_of(model)).status == "pass"


def test_the_gradient_of_a_loss_in_float32_is_checked_in_float64() -> None:
    finding = check_gradient(gpt_case(dropout=0.1))  # its cross-entropy says .float()
    assert finding.status == "pass" and (finding.value or 1) < 1e-7


def test_overfitting_one_batch_fails_where_the_gradient_points_up() -> None:
    class Upwards(Supervised):
        def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
            loss = super().loss_sum(model, batch)
            return 2 * loss.detach() - loss

    assert check_overfit(case_of(network(nn.ReLU()), Upwards(nn.CrossEntropyLoss()))).status == "fail"


def test_precision_drift_is_measured_and_the_layers_are_named() -> None:
    finding = check_precision(
        VerifyCase(toy_gpt(), LanguageModeling(), toy_batches(3), TrainConfig(precision="bf16"), steps=3)
    )
    assert finding.status == "pass" and 0 < (finding.value or 0) < 0.02 and "%" in finding.detail
    assert check_precision(gpt_case()).status == "skipped"

    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.float() + 4096) - 4096 if x.dtype == torch.float32 else (x + 4096) - 4096

    case = VerifyCase(network(Fragile()), CROSS_ENTROPY, pairs()[:3], TrainConfig(precision="bf16"), steps=3)
    finding = check_precision(case)
    assert finding.status == "fail" and "1 " in finding.detail.splitlines()[1]


def test_compiled_and_eager_agree_and_graph_breaks_are_counted() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return torch.tanh(x)

    finding = check_compiled(case_of(network(Breaks(), nn.Dropout(0.2))), "aot_eager")
    assert finding.status == "pass" and "graph breaks (Call to" in finding.detail
    assert check_compiled(case_of(network(), compile=False)).status == "skipped"
    assert check_compiled(case_of(network()), seconds_left=1).status == "skipped"


def test_data_that_differs_by_where_reading_begins_is_caught() -> None:
    class Drifting:
        def __len__(self) -> int:
            return 4

        def iterate(self, start: int | None = None) -> Any:
            for position in range(start or 0, 100):
                yield (torch.full((2, 4), float(position - (start or 0))), torch.zeros(2, dtype=torch.long))

    case = case_of(network())
    assert check_order(case).status == "pass"
    case.stream = Drifting()
    assert check_order(case).status == "fail"


def test_validation_samples_seen_in_training_are_a_warning() -> None:
    case = case_of(network(), batches=pairs()[:4])
    case.validation = pairs()[4:6]
    assert check_leak(case).status == "pass"
    case.validation = [*pairs()[4:6], take_rows(pairs()[1], [3, 5])]
    finding = check_leak(case)
    assert finding.status == "warning" and finding.detail.startswith("2 of 34")


def test_the_schedule_is_printed_and_the_first_loss_held_against_guessing() -> None:
    detail = check_schedule(case_of(network(), max_steps=100, warmup_steps=10)).detail
    assert "cosine over 100 steps" in detail and "1: 0.001, 10: 0.01" in detail
    finding = check_first_loss(gpt_case())
    assert finding.status == "info" and "ln 48" in finding.detail
    steep = network()
    with torch.no_grad():
        steep[-1].weight.mul_(100)  # type: ignore[operator, union-attr]
    assert check_first_loss(case_of(steep)).status == "warning"


def test_what_stops_a_check_is_a_finding_and_the_time_limit_skips() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no luck today")

    report = verify_trainer(network(Failing()), CROSS_ENTROPY, pairs()[:2], CONFIG)
    assert report["resume"].status == "fail" and "no luck today" in report["resume"].detail
    assert report["data order"].status == "pass"
    late = verify_trainer(network(), CROSS_ENTROPY, pairs()[:2], CONFIG, time_limit=1e-9)
    assert {finding.status for finding in late.findings} == {"skipped"} and late.ok


def test_a_model_that_can_not_be_copied_is_built_by_a_function() -> None:
    class NoCopy(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not this one")

    with pytest.raises(ModelError, match="can't be copied"):
        case_of(NoCopy(4, 2)).fresh()
    report = verify_trainer(lambda: NoCopy(4, 2), CROSS_ENTROPY, pairs()[:3], CONFIG.replace(compile=False), steps=2)
    assert report.ok, report.table()
    with pytest.raises(DataError, match="no target"):
        verify_trainer(network(), LanguageModeling(), [{"labels": torch.full((2, 3), -100)}], CONFIG)


def test_rows_of_any_batch_are_cut_and_joined() -> None:
    batch = {
        "pixels": torch.randn(4, 3),
        "pair": (torch.arange(4), [torch.ones(2, 4).T, torch.zeros(4)]),
        "boxes": [torch.full((row, 2), float(row)) for row in range(4)],
        "names": ["a", "b", "c", "d"],
        "scale": torch.tensor(2.0),
    }
    parts = split_rows(batch, [1, 3])
    assert [part["names"] for part in parts] == [["a"], ["b", "c", "d"]] and len(parts[1]["boxes"]) == 3
    joined = join_rows(parts)
    assert same(joined, batch) and joined["names"] == batch["names"]
    assert row_digests(take_rows(batch, [2]))[0] == row_digests(batch)[2]
    assert len(set(row_digests({"x": torch.tensor([1.0, 2.0, 1.0])}))) == 2


def test_dropout_is_taken_out_of_modules_and_functions() -> None:
    x = torch.randn(2, 3, 4, 4)
    with without_dropout():
        assert torch.equal(nn.Dropout(0.5)(x), x) and torch.equal(F.dropout(x, 0.9), x)
        torch.testing.assert_close(
            F.scaled_dot_product_attention(x, x, x, dropout_p=0.9), F.scaled_dot_product_attention(x, x, x)
        )
        torch.testing.assert_close(
            F.scaled_dot_product_attention(x, x, x, None, 0.9), F.scaled_dot_product_attention(x, x, x)
        )
    assert not torch.equal(nn.Dropout(0.5)(x), x)


def test_differences_are_relative_and_nothing_is_hidden() -> None:
    ones = {"a": torch.ones(4), "b": torch.full((4,), 1e-9)}
    assert relative_difference(ones, {"a": torch.ones(4), "b": torch.full((4,), 2e-9)})[0] < 1e-5
    assert relative_difference(ones, {**ones, "a": torch.full((4,), 1.1)}) == (pytest.approx(0.1), "a")
    assert relative_difference(ones, {"a": torch.ones(4)}) == (float("inf"), "b")
    assert relative_difference(ones, {**ones, "a": torch.full((4,), float("nan"))})[0] == float("inf")


def test_a_report_prints_and_says_what_failed() -> None:
    report = VerifyReport([Finding("resume", "fail", "one\ntwo", float("nan"), 0.0), Finding("order", "pass", "fine")])
    assert not report.ok and report.failed == ["resume"] and len(report.table().splitlines()) == 3
    assert "NaN" not in json.dumps(report.to_dict())
    with pytest.raises(KeyError):
        report["gradient"]
