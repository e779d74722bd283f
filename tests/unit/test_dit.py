"""DiT: the block against its formula, zero at the start, published sizes, and a toy distribution that is learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models.diffusion import (
    NoiseSchedule,
    diffusion_example,
    drop_labels,
    flow_example,
    guided,
    sample_ddim,
    sample_flow,
)
from deepseek.models.dit import DiT, DiTConfig, TimestepEmbedding
from deepseek.models.factory import build
from deepseek.nn.adaptive_norm import AdaptiveBlock
from deepseek.nn.patch_embedding import patches_to_pixels, sincos_positions

TOY = DiTConfig(latent_size=8, num_channels=3, num_classes=5, num_layers=2, d_model=16, num_heads=2, d_ff=24)


def random_weights(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize(("size", "millions"), [("dit-s2", 33), ("dit-b4", 130), ("dit-xl2", 675)])
def test_published_parameter_counts(size: str, millions: int) -> None:
    """Table 4 of the paper; the authors count the fixed position vectors as well."""
    with torch.device("meta"):
        model = build(size)
    count = sum(p.numel() for p in model.parameters())
    config = model.config
    assert isinstance(config, DiTConfig)
    fixed = (config.latent_size // config.patch_size) ** 2 * config.d_model
    assert round((count + fixed) / 1e6) == pytest.approx(millions, abs=0.5 if millions < 200 else 1)


def test_training_starts_at_the_identity() -> None:
    """With adaLN-zero every block returns its input, and the model predicts zero."""
    model = DiT(TOY)
    inputs = model.example_inputs(3)
    assert model(**inputs).shape == (3, 6, 8, 8)
    assert not model(**inputs).any()
    x = torch.randn(2, 4, 16)
    assert torch.equal(model.blocks[0](x, torch.randn(2, 16)), x)


def test_a_block_is_the_formula_of_the_paper() -> None:
    block = AdaptiveBlock(8, 2, 12).double()
    random_weights(block)
    x, condition = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    w = dict(block.named_parameters())

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    for sample in range(3):
        silu = condition[sample] * torch.sigmoid(condition[sample])
        made = w["norm.modulation.weight"] @ silu + w["norm.modulation.bias"]
        shift, scale, gate, shift_ff, scale_ff, gate_ff = made.split(8)
        y = x[sample]
        qkv = (norm(y) * (1 + scale) + shift) @ w["attention.qkv.weight"].T + w["attention.qkv.bias"]
        seen = []
        for head in range(2):
            q, k, v = (qkv[:, 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
            seen.append(torch.softmax(q @ k.T / 2, -1) @ v)
        y = y + gate * (torch.cat(seen, 1) @ w["attention.out.weight"].T + w["attention.out.bias"])
        hidden = (norm(y) * (1 + scale_ff) + shift_ff) @ w["feed_forward.up.weight"].T + w["feed_forward.up.bias"]
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        y = y + gate_ff * (hidden @ w["feed_forward.down.weight"].T + w["feed_forward.down.bias"])
        torch.testing.assert_close(block(x, condition)[sample], y)


def test_positions_and_times_are_sines_and_cosines_of_the_place() -> None:
    found = sincos_positions((3, 5), 8, torch.device("cpu"))[0]
    for row in range(3):
        for column in range(5):
            wanted = []
            for place in (column, row):
                wanted += [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]
            assert found[row * 5 + column].tolist() == pytest.approx(wanted, abs=1e-6)
    layer = TimestepEmbedding(4, scale=1000.0)
    features = []
    layer.up.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    layer(torch.tensor([0.25]), torch.float32)
    wanted = [math.cos(250 * 10000 ** (-i / 128)) for i in range(128)]
    assert features[0][0, :128].tolist() == pytest.approx(wanted, abs=1e-4)


def test_patches_come_back_where_they_were() -> None:
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = F.unfold(image, (2, 3), stride=(2, 3)).unflatten(1, (3, 6)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(patches_to_pixels(patches, (2, 2), (2, 3)), image)


def test_a_patch_of_the_output_belongs_to_the_patch_of_the_input() -> None:
    """Without attention a change in one patch changes the prediction there alone."""
    model = DiT(TOY)
    random_weights(model)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    inputs = model.example_inputs()
    before = model(**inputs)
    inputs["latents"] = inputs["latents"].clone()
    inputs["latents"][0, 1, 4, 3] += 1  # patch of rows 4 and 5, columns 2 and 3
    changed = (model(**inputs) != before)[0].any(0)
    assert changed[4:6, 2:4].all()
    assert int(changed.sum()) == 4


def test_no_label_is_the_null_class() -> None:
    model = DiT(TOY)
    random_weights(model)
    inputs = model.example_inputs(2)
    labels = inputs.pop("labels")
    null = model(**inputs)
    assert torch.equal(null, model(**inputs, labels=torch.tensor([5, 5])))
    assert not torch.equal(null, model(**inputs, labels=labels))
    with pytest.raises(ModelError, match="labels are missing"):
        DiT(TOY.replace(null_class=False))(**inputs)


def test_latents_of_other_sizes_are_taken() -> None:
    model = DiT(TOY)
    assert model(torch.randn(1, 3, 2, 14), torch.tensor([3])).shape == (1, 6, 2, 14)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents"),
        ({"latents": torch.zeros(2, 3, 7, 8)}, "whole patches"),
        ({"timesteps": torch.zeros(2, 1)}, "timesteps"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"labels": torch.tensor([0, 6])}, "unknown class"),
        ({"labels": torch.zeros(2)}, "class numbers"),
    ],
)
def test_wrong_inputs_are_named(changed: dict[str, Tensor], message: str) -> None:
    model = DiT(TOY)
    with pytest.raises(ModelError, match=message):
        model(**{**model.example_inputs(2), **changed})


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"latent_size": 9}, "latent_size 8"),
        ({"d_model": 18, "num_heads": 2}, "d_model 16"),
        ({"num_heads": 7}, "num_heads 6|num_heads 8"),
        ({"num_classes": 0, "null_class": False}, "null_class true"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_would(values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        DiTConfig(**values)


def toy_images(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (batch, 1, 4, 4): 1 in the left half for class 0, in the right for class 1, else -1; noise of 0.1."""
    image = -torch.ones(labels.shape[0], 1, 4, 4)
    for label, columns in enumerate((slice(0, 2), slice(2, 4))):
        image[labels == label, :, :, columns] = 1.0
    return image + 0.1 * torch.randn(image.shape, generator=generator)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_a_toy_model_learns_two_classes_of_images(kind: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = DiTConfig(
        latent_size=4,
        num_channels=1,
        num_classes=2,
        num_layers=1,
        d_model=32,
        num_heads=2,
        learn_sigma=False,
        timestep_scale=1000.0 if kind == "flow" else 1.0,
    )
    model, schedule = DiT(config), NoiseSchedule.linear(100, 1e-3, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0, fused=True)
    for _ in range(400):
        labels = torch.randint(2, (64,), generator=generator)
        clean = toy_images(labels, generator)
        example = flow_example(clean, generator) if kind == "flow" else diffusion_example(schedule, clean, generator)
        seen = drop_labels(labels, null_class=2, rate=0.1, generator=generator)
        F.mse_loss(model(example.x, example.timesteps, seen), example.target).backward()
        optimizer.step()
        optimizer.zero_grad()
    labels = torch.arange(2).repeat_interleave(32)
    noise = torch.randn(64, 1, 4, 4, generator=generator)
    predict = guided(model.eval(), labels, null_class=2, scale=1.5)
    if kind == "flow":
        samples = sample_flow(predict, noise, steps=20)
    else:
        samples = sample_ddim(predict, schedule, noise, steps=20, clip=1.5)
    wanted = toy_images(labels, generator).sign()
    assert float((samples.sign() == wanted).float().mean()) > 0.97
    assert float((samples - wanted).abs().mean()) < 0.35
