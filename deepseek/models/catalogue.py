"""What each size of the zoo costs: weights, operations, memory. Reckoned on shapes alone, nothing is allocated.

Reckoning all sizes takes some 15 seconds, so that their numbers are shipped in `catalogue.yaml`. A test reckons them
anew; `python -m tests.contract.update_catalogue` writes them.
Not here: time, and the memory of activations, which depends on the batch (`deepseek.train.memory.estimate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import deepseek.nn.gated_experts  # noqa: F401  the operator below comes with it
from deepseek.config import Config, parse_yaml
from deepseek.models.factory import build, model_config, zoo


@dataclass(frozen=True)
class Entry:
    """One size and its costs."""

    name: str
    template: str
    parameters: int
    """Number of weights, shared ones counted once."""
    flops: int
    """Floating point operations of a forward pass over `inputs`; a multiplication with its addition counts as two."""
    inputs: dict[str, list[int]]
    """The shapes of `example_inputs(1)`, by name."""

    @property
    def fp32_bytes(self) -> int:
        """Memory of the weights in float32."""
        return 4 * self.parameters

    @property
    def bf16_bytes(self) -> int:
        """Memory of the weights in bfloat16."""
        return 2 * self.parameters

    @property
    def training_bytes(self) -> int:
        """Memory of weights, gradients and AdamW's two averages in float32, activations not among them."""
        return 4 * self.fp32_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON."""
        memory = {name: getattr(self, name) for name in ("fp32_bytes", "bf16_bytes", "training_bytes")}
        return {**asdict(self), **memory}


def catalogue() -> Iterator[Entry]:
    """Yield every size of the zoo, in the order of their names."""
    known = shipped()
    for name in zoo():
        yield known[name] if name in known else entry(name, *model_config(name))


def shipped() -> dict[str, Entry]:
    """Return the entries of `catalogue.yaml` by name."""
    text = (resources.files("deepseek.models") / "catalogue.yaml").read_text(encoding="utf-8")
    values: Any = parse_yaml(text, "catalogue.yaml").value
    return {name: Entry(name, **costs) for name, costs in values.items()}


def entry(name: str, template: str, config: Config) -> Entry:
    """Return what the model of `config` costs."""
    model = on_meta(config)
    inputs = meta_inputs(model)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OPERATOR_FLOPS) as counter:
        model(**inputs)
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    return Entry(name, template, count_parameters(model), counter.get_total_flops(), shapes)


def on_meta(config: Config) -> nn.Module:
    """Build the model without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return build(config).eval()


def meta_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return the shapes of `example_inputs(1)` as tensors without memory."""
    example: Any = model.example_inputs
    inputs: dict[str, Tensor] = example(1)
    return {name: value.to("meta") for name, value in inputs.items()}


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def find(name: str) -> tuple[str, str, Config]:
    """Return (name, template, config) for a size of the zoo, a YAML file, or a template with its default sizes.

    Raises ConfigError with the nearest known name.
    """
    values: Any = name if name in zoo() or Path(name).suffix in {".yaml", ".yml"} else {"name": name}
    template, config = model_config(values)
    return name, template, config


def _experts_flops(x: list[int], gate: list[int], *rest: list[int], **_: Any) -> int:
    rows, d_model = x
    return 3 * 2 * rows * d_model * gate[1]


OPERATOR_FLOPS = {torch.ops.deepseek.gated_experts: _experts_flops}
"""Operations of our own operators, whose products torch's counter can't see."""
