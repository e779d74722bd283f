"""ResNet-50 and BERT-base with drawn weights, the inputs they are timed on, and how their answers are compared.

Norms get the statistics of a batch of noise, so that activations have the ranges of a trained model; the weights say
nothing, which speed and size do not mind. Each case has a toy size for the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One model: how to build it, and inputs of it."""

    name: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    settings: Mapping[str, Any]
    inputs: Callable[[Mapping[str, Any], int, torch.Generator], Inputs]
    eager_target: float
    """How many times faster than eager FP32 the best int8 form should be."""
    toy_settings: Mapping[str, Any]

    def toy(self) -> Case:
        """Return the same at a size that runs in milliseconds."""
        return replace(self, settings={**self.settings, **self.toy_settings})

    def model(self) -> nn.Module:
        """Return the float model, in eval mode, its weights drawn from a fixed seed."""
        torch.manual_seed(0)
        return self.build(self.settings).eval()

    def batch(self, size: int, seed: int = 0) -> Inputs:
        """Return seeded inputs by name."""
        return self.inputs(self.settings, size, torch.Generator().manual_seed(seed))

    def answer(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's first output."""
        with torch.no_grad():
            found = model(**inputs)
        return found if isinstance(found, Tensor) else next(iter(found))


def calibration(case: Case, count: int = 8) -> list[Inputs]:
    """Return batches for ranges, other ones than those that are compared."""
    return [case.batch(2, seed) for seed in range(100, 100 + count)]


def int8_model(case: Case) -> tuple[nn.Module, nn.Module]:
    """Return (the float model with its norms folded, our static int8 copy)."""
    from deepseek.nn.fold_norm import fold_norms
    from deepseek.quantization import QuantConfig, quantize_model

    model = case.model()
    fold_norms(model, case.batch(1))
    config = QuantConfig(method="static", quant_scheme="asymmetric", calibration="minmax")
    return model, quantize_model(model, config, calibration(case))


def _resnet(settings: Mapping[str, Any]) -> nn.Module:
    from deepseek.models.resnet import ResNet, ResNetConfig

    model = ResNet(ResNetConfig(**settings))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics are those of the one batch
    with torch.no_grad():
        model(**_images(settings, 4, torch.Generator().manual_seed(7)))
    return model


def _bert(settings: Mapping[str, Any]) -> nn.Module:
    from deepseek.models.bert import BERT, BERTConfig

    return BERT(BERTConfig(**{name: value for name, value in settings.items() if name != "time"}))


def _images(settings: Mapping[str, Any], size: int, generator: torch.Generator) -> Inputs:
    side = int(settings["image_size"])
    return {"pixel_values": torch.randn(size, 3, side, side, generator=generator)}


def _texts(settings: Mapping[str, Any], size: int, generator: torch.Generator) -> Inputs:
    shape = (size, int(settings["time"]))
    ids = torch.randint(1, int(settings["vocab_size"]), shape, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


_TOY_IMAGES = {"image_size": 32, "num_labels": 5, "depths": [1, 1], "hidden_sizes": [16, 32], "stem_size": 8}
_TOY_TEXTS = {"vocab_size": 60, "time": 12, "d_model": 32, "num_layers": 2, "num_heads": 2, "max_length": 16}
CASES = {
    case.name: case
    for case in (
        Case("resnet50", _resnet, {"image_size": 224}, _images, 8.0, _TOY_IMAGES),
        Case("bert-base", _bert, {"vocab_size": 30522, "time": 128}, _texts, 6.0, _TOY_TEXTS),
    )
}
