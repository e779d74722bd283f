"""The catalogue's numbers against formulas, and the tree of a model's structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.models import catalogue as costs
from deepseek.models.factory import model_config, zoo
from deepseek.models.mlp import MLPConfig
from deepseek.models.structure import count_text, draw, structure


def test_operations_of_a_gpt_are_those_of_its_products() -> None:
    template, config = model_config({"name": "gpt2-small", "vocab_size": 1000})
    found = costs.entry("x", template, config)
    layer_weights = 12 * 768 * 768
    scores = 2 * 2 * 16 * 16 * 768  # queries with keys, weights with values
    assert found.inputs == {"input_ids": [1, 16]}
    assert found.flops == 12 * (2 * 16 * layer_weights + scores) + 2 * 16 * 768 * 1000


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("resnet50", 4.09),  # torchvision's table of weights
        ("vit-b16", 17.56),  # the same
        ("dit-xl2", 118.64),  # Peebles and Xie 2023, table 4
        ("convnext-tiny", 4.5),  # Liu et al. 2022, table 1
        ("swin-tiny", 4.5),  # Liu et al. 2021, table 1
    ],
)
def test_operations_are_twice_the_published_multiplications(name: str, giga: float) -> None:
    assert costs.shipped()[name].flops / 2e9 == pytest.approx(giga, rel=0.01)


def test_memory_follows_from_the_number_of_weights() -> None:
    found = costs.entry("linear", "MLP", MLPConfig(input_shape=[9], hidden_sizes=[], num_labels=1))
    assert (found.parameters, found.flops) == (10, 18)
    assert (found.fp32_bytes, found.bf16_bytes, found.training_bytes) == (40, 20, 160)
    assert found.to_dict()["training_bytes"] == 160 and found.to_dict()["inputs"] == {"features": [1, 9]}


@pytest.mark.parametrize("name", zoo())
def test_the_numbers_shipped_are_those_of_every_size(name: str) -> None:
    found = costs.entry(name, *model_config(name))
    assert found.parameters > 1000 and found.flops > found.parameters / 1000
    assert costs.shipped().get(name) == found, "accept it: python -m tests.contract.update_catalogue"


def test_nothing_is_shipped_that_the_zoo_lacks() -> None:
    assert not set(costs.shipped()) - set(zoo()), "accept it: python -m tests.contract.update_catalogue"
    assert [found.name for found in costs.catalogue()] == list(zoo())


def test_find_takes_sizes_templates_and_files(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: GPT\nnum_layers: 2\n")
    assert costs.find("gpt2-xl")[1] == costs.find("GPT")[1] == costs.find(str(path))[1] == "GPT"
    with pytest.raises(ConfigError, match="gpt2-xl"):
        costs.find("gpt2-x")


def test_equal_blocks_in_a_row_are_one_line() -> None:
    model = costs.on_meta(model_config({"name": "gpt2-small"})[1])
    root = structure(model)
    blocks = next(part for part in root.parts if part.name == "blocks")
    assert [(part.name, part.count, part.output) for part in blocks.parts] == [("0-11", 12, "1 x 16 x 768")]
    assert blocks.parts[0].parameters == blocks.parameters == 12 * (12 * 768**2 + 13 * 768)
    assert root.parameters == 124_439_808
    lines = list(draw(root))
    assert lines[0][0] == "GPT" and lines[0][3] == "1 x 16 x 50257"
    assert any("0-11 x12" in line[0] for line in lines)
    assert sum("shared weight" in line[1] for line in lines) == 2
    assert len(list(draw(root, depth=1))) == 1 + len(root.parts) < len(lines)


def test_blocks_that_differ_stay_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)])
            self.query, self.key = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in [*self.rows, self.query, self.key]:
                x = layer(x)
            return x

        def example_inputs(self, batch_size: int = 1) -> dict[str, torch.Tensor]:
            return {"x": torch.zeros(batch_size, 3)}

    with torch.device("meta"):
        root = structure(Net())
    assert [(part.name, part.count) for part in root.parts[0].parts] == [("0-1", 2), ("2", 1), ("3", 1)]
    assert [part.name for part in root.parts] == ["rows", "query", "key"]
    assert root.parts[1].kind == "Linear 2 -> 2" and root.parts[1].output == "1 x 2"


@pytest.mark.parametrize(("number", "text"), [(0, ""), (850, "850"), (7100, "7.1 K"), (124_439_808, "124.4 M")])
def test_numbers_of_weights_are_short(number: int, text: str) -> None:
    assert count_text(number) == text
