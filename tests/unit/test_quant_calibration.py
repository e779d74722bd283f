"""Calibration by running the model: `best`, memory that does not grow with the data, and data that does not fit."""

from __future__ import annotations

import errno
import math
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.errors import QuantizationError, StorageError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.quantization import QuantConfig, Quantizer, quantize_model, quantize_with_report
from deepseek.quantization.calibrate import input_rows

STATIC = QuantConfig(method="static")


def model_with(first: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(first or nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_best_is_no_worse_than_any_method_on_any_layer(scheme: str) -> None:
    model, data = model_with(), [torch.randn(64, 8).pow(3) for _ in range(2)]
    ratios: dict[str, list[float]] = {}
    for calibration in ("best", "minmax", "moving_average", "percentile", "mse", "kl"):
        values = {"method": "static", "calibration": calibration, "quant_scheme": scheme}
        _, report = quantize_with_report(model, QuantConfig.model_validate(values), [torch.cat(data)])
        ratios[calibration] = [layer.output_sqnr_db or 0 for layer in report.layers]
        if calibration == "best":
            assert all(layer.calibration in ("minmax", "percentile", "mse", "kl") for layer in report.layers)
    for layer in range(2):
        assert ratios["best"][layer] >= max(each[layer] for each in ratios.values()) - 1e-6


def test_batches_are_not_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(30):
            batch = torch.randn(16, 8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            most = max(most, sum(reference() is not None for reference in alive))

    quantize_model(model_with(), QuantConfig(method="static", calibration="best", algorithm="adaround"), stream())
    assert len(alive) == 30 and most <= 10


def test_rows_for_rounding_are_bounded_and_come_from_every_batch() -> None:
    model = model_with()
    rows = input_rows(model, ["0"], [torch.full((50, 8), float(number)) for number in range(6)], most=40)["0"]
    assert rows.shape == (40, 8) and set(rows[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


@pytest.mark.parametrize(
    ("data", "message", "found", "wanted"),
    [
        ([torch.randn(4, 9)], "batch 1 does not fit the model at '0'", r"\(4, 9\)", r"\(\.\.\., 8\)"),
        ([torch.randn(4, 8), torch.randn(8, 4)], "batch 2 does not fit the model at '0'", r"\(8, 4\)", "8"),
        ([torch.ones(4, 8, dtype=torch.long)], "batch 1 does not fit the model at '0'", "int64", "floating"),
        ([[]], "batch 1 does not fit the model at its input", "no tensor", "forward"),
        ([torch.full((2, 8), math.nan)], "input of layer '0' is not finite", "nan", "finite"),
        ([torch.full((2, 8), math.inf)], "input of layer '0' is not finite", "inf", "finite"),
        ([], "no batches", None, None),
    ],
)
def test_data_that_does_not_fit_names_the_module_and_what_it_takes(
    data: list[Any], message: str, found: str | None, wanted: str | None
) -> None:
    model = model_with()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for config in (STATIC, QuantConfig(method="static", algorithm="smoothquant", bias_correction=True)):
        with pytest.raises(QuantizationError, match=message) as caught:
            quantize_model(model, config, data)
        if found is not None and wanted is not None:
            assert re.search(found, str(caught.value.found)), caught.value.found
            assert re.search(wanted, str(caught.value.wanted)), caught.value.wanted
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nan_inside_the_model_names_the_layer_that_got_it() -> None:
    model = model_with()
    with torch.no_grad():
        model[0].bias[3] = math.nan
    with pytest.raises(QuantizationError, match="input of layer '2' is not finite"):
        quantize_model(model, STATIC, [torch.randn(4, 8)])


def test_a_full_disk_leaves_the_old_bundle_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(GPTConfig(vocab_size=64, max_length=16, num_layers=1, d_model=32, num_heads=2))
    for target in (tmp_path / "bundle", tmp_path / "one.pt"):
        bundle.save(model, target)
        quantizer = Quantizer(model_path=target)
        quantizer.apply_dynamic_quant()
        with monkeypatch.context() as patch:

            def refuse(*arguments: Any, **settings: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr("deepseek.bundle.save_file", refuse)
            patch.setattr("deepseek.bundle.torch.save", refuse)
            with pytest.raises(StorageError, match="can't write"):
                quantizer.save(target)
        kept = bundle.load(target, device="cpu")
        kept.verify()
        assert kept.config.quantization == {} and sorted(path.name for path in tmp_path.glob("*tmp*")) == []
        quantizer.save(target)
        assert bundle.load(target, device="cpu").config.quantization
