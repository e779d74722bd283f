"""Mixed precision: layers are lowered by what they were measured to lose, not by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deepseek import bundle
from deepseek.compress import CompressConfig, compress_bundle
from deepseek.compress.measure import bytes_on_disk
from deepseek.compress.mix import LayerLoss, lowering_order
from deepseek.compress.sensitivity import search_mix
from deepseek.compress.units import Drop
from deepseek.errors import QuantizationError
from deepseek.quantization import quantize_model
from deepseek.tasks import Classification
from deepseek.tasks.task import evaluate
from tests.toy_compress import spots, trained

VAL = spots(256, seed=2)
MIXED = CompressConfig(method="mixed")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model whose second layer has one huge weight in each row that meets a dead input: int8 and int4 rows of
    it keep nothing else, while the float model answers as before."""
    path = trained(tmp_path_factory.mktemp("mix") / "bundle")
    model = bundle.load(path, device="cpu").model
    with torch.no_grad():
        first, second = model.get_submodule("layers.0.0"), model.get_submodule("layers.1.0")
        first.get_parameter("weight")[0] = 0.0
        first.get_parameter("bias")[0] = -1.0  # ReLU of it is zero for every sample
        second.get_parameter("weight")[:, 0] = 500.0
    return bundle.save(model, path, task="classification")


def test_the_layer_that_loses_most_stays_in_floating_point(fragile: Path) -> None:
    model, task = bundle.load(fragile, device="cpu").model, Classification()
    mix = search_mix(model, task, VAL, Drop(0.01, True), base=MIXED)
    assert "layers.1.0" not in mix.levels and "layers.1.0" in mix.config.skip
    assert set(mix.levels) == {"layers.0.0", "head"}
    loss = {(one.name, one.level): one for one in mix.layers}
    assert loss["layers.1.0", "int8"].sqnr_db < 20 < loss["layers.0.0", "int8"].sqnr_db
    dropped = {name: one.drop for (name, level), one in loss.items() if level == "int8"}
    assert max(dropped, key=lambda name: dropped[name] or 0.0) == "layers.1.0"
    before, after = evaluate(model, VAL, task), mix.figures
    assert after["accuracy"] >= before["accuracy"] * 0.99 - 1e-9
    whole = evaluate(quantize_model(model), VAL, task)
    assert whole["accuracy"] < 0.9 * before["accuracy"]  # what happens without the mix


def test_the_config_makes_the_mix_again(fragile: Path, tmp_path: Path) -> None:
    report = compress_bundle(fragile, tmp_path / "small", VAL, config=MIXED)
    assert report.chosen.startswith("mixed (") and report.mix
    small = bundle.load(tmp_path / "small", device="cpu")
    assert type(small.model.get_submodule("layers.1.0")) is nn.Linear
    assert not isinstance(small.model.get_submodule("head"), nn.Linear)
    assert report.rows[-1]["bytes"] < report.rows[0]["bytes"]
    assert evaluate(small.model, VAL, Classification()) == pytest.approx(report.rows[-1]["figures"])


def test_a_target_takes_the_mix_that_loses_least(fragile: Path) -> None:
    model = bundle.load(fragile, device="cpu").model

    whole = bytes_on_disk(model)

    def is_a_little_smaller(form: nn.Module) -> bool:
        return bytes_on_disk(form) < whole - 1000

    mix = search_mix(model, Classification(), VAL, Drop(0.01, True), base=MIXED, target=is_a_little_smaller)
    assert len(mix.levels) == 1 and mix.bytes < whole - 1000


def test_no_mix_is_an_error_that_says_how_near_it_came(fragile: Path) -> None:
    model = bundle.load(fragile, device="cpu").model
    perfect = {"loss": 0.0, "accuracy": 1.5}
    with pytest.raises(QuantizationError, match="(?s)no mix.*accuracy.*allow more"):
        search_mix(model, Classification(), VAL, Drop(0.0, True), base=MIXED, original=perfect)


def test_the_order_takes_what_saves_most_for_the_least_loss() -> None:
    losses = [
        LayerLoss("a", "int8", 30, 40.0, 0.0),
        LayerLoss("a", "int4", 40, 20.0, 0.0),
        LayerLoss("b", "int8", 30, 10.0, 0.3),
        LayerLoss("b", "int4", 40, 10.0, 0.3),
        LayerLoss("c", "int8", 3000, 30.0, None),
    ]
    found = [(one.name, one.level) for one in lowering_order(losses)]
    assert found == [("c", "int8"), ("a", "int8"), ("a", "int4"), ("b", "int4")]  # b's int8 saves less, loses as much
