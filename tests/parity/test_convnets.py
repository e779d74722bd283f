"""Our ResNet, MobileNetV2, EfficientNet and ConvNeXt against those of transformers, weights read from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.models.efficientnet import EfficientNet, EfficientNetConfig
from deepseek.models.factory import model_config
from deepseek.models.pretrained.efficientnet import symmetric_blocks
from deepseek.models.pretrained.front import from_pretrained, save_pretrained
from deepseek.registry import PRETRAINED, resolve
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet, bottlenecks": ("ResNet", {"embedding_size": 6, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 2]}),
    "resnet, basic blocks": (
        "ResNet",
        {"embedding_size": 6, "hidden_sizes": [6, 10], "depths": [2, 1], "layer_type": "basic", "num_channels": 2},
    ),
    "resnet, downsampling first": (
        "ResNet",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [2, 2],
            "downsample_in_first_stage": True,
            "downsample_in_bottleneck": True,
        },
    ),
    "mobilenet, tensorflow's padding": ("MobileNetV2", {"depth_multiplier": 0.25, "finegrained_output": False}),
    "mobilenet, equal padding": (
        "MobileNetV2",
        {"depth_multiplier": 0.1, "depth_divisible_by": 4, "min_depth": 4, "tf_padding": False, "hidden_act": "relu"},
    ),
    "mobilenet, dilated": (
        "MobileNetV2",
        {
            "depth_multiplier": 0.1,
            "depth_divisible_by": 2,
            "min_depth": 4,
            "output_stride": 8,
            "expand_ratio": 3.5,
            "first_layer_is_expansion": False,
            "hidden_act": "swish",
        },
    ),
    "efficientnet": ("EfficientNet", {"width_coefficient": 0.2, "depth_coefficient": 0.6, "hidden_dim": 256}),
    "efficientnet, padding of odd maps": (
        "EfficientNet",
        {
            "width_coefficient": 0.1,
            "depth_coefficient": 1.1,
            "hidden_dim": 128,
            "depthwise_padding": [2, 5, 8],
            "pooling_type": "max",
            "squeeze_expansion_ratio": 0.5,
        },
    ),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_stages": 3}),
    "convnext, other patches, no factors": (
        "ConvNext",
        {
            "hidden_sizes": [8, 16],
            "depths": [2, 1],
            "num_stages": 2,
            "patch_size": 3,
            "layer_scale_init_value": 0.0,
            "layer_norm_eps": 1e-3,
            "num_channels": 1,
        },
    ),
}
NO_DROPOUT: dict[str, dict[str, float]] = {
    "MobileNetV2": {"classifier_dropout_prob": 0.0},
    "EfficientNet": {"dropout_rate": 0.0, "drop_connect_rate": 0.0},
}


def their_model(template: str, settings: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{template}Config")(num_labels=5, **{**NO_DROPOUT.get(template, {}), **settings})
    model = getattr(transformers, f"{template}ForImageClassification")(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # like a trained one, for features that neither vanish nor explode
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "layer_scale_parameter":
                nn.init.uniform_(parameter, 0.3, 0.8)
    return noisy(model)


def images(template: str, settings: dict[str, Any], height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, settings.get("num_channels", 3), height, width)


@pytest.mark.parametrize("case", CASES)
def test_logits_gradients_and_files_agree(case: str, tmp_path: Path) -> None:
    template, settings = CASES[case]
    theirs = their_model(template, settings)
    pixel_values = images(template, settings, 64, 96)
    ours = check_family(theirs, {"pixel_values": pixel_values}, tmp_path)
    for height, width in ((65, 71), (47, 38), (33, 129)):
        other = images(template, settings, height, width, batch=1)
        with torch.no_grad():
            torch.testing.assert_close(ours(other), theirs(other).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_training_agrees_with_the_batchs_own_statistics(case: str, tmp_path: Path) -> None:
    template, settings = CASES[case]
    theirs = their_model(template, settings)
    theirs.save_pretrained(tmp_path)
    theirs.double().train()
    ours = from_pretrained(tmp_path).double().train()
    pixel_values = images(template, settings, 64, 64, batch=4).double()
    answers = []
    for model in (theirs, ours):
        found = model(pixel_values)
        found = found if isinstance(found, Tensor) else found.logits
        found.logsumexp(-1).sum().backward()
        answers.append((found.detach(), norms_of_gradients(model)))
    torch.testing.assert_close(answers[1][0], answers[0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[1][1], answers[0][1], atol=1e-4, rtol=1e-4)


def norms_of_gradients(model: nn.Module) -> Tensor:
    """Return the gradients' norms, sorted, because the two models have other names for their weights."""
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(norms).sort().values


def test_the_mean_of_the_image_is_their_feature_map(tmp_path: Path) -> None:
    for case in ("resnet, bottlenecks", "mobilenet, dilated", "efficientnet", "convnext"):
        template, settings = CASES[case]
        theirs = their_model(template, settings)
        theirs.save_pretrained(tmp_path / template)
        pixel_values = images(template, settings, 64, 70)
        with torch.no_grad():
            wanted = theirs.base_model(pixel_values).last_hidden_state
            found = from_pretrained(tmp_path / template).forward_features(pixel_values)  # type: ignore[operator]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["resnet, bottlenecks", "mobilenet, equal padding", "efficientnet", "convnext"])
def test_another_number_of_labels_starts_the_classifier_anew(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template, settings = CASES[case]
    theirs = their_model(template, settings)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, num_labels=3)
    assert "classifier" in caplog.text
    pixel_values = images(template, settings, 64, 64)
    with torch.no_grad():
        assert ours(pixel_values).shape == (2, 3)
        wanted = theirs.base_model(pixel_values).last_hidden_state
        torch.testing.assert_close(ours.forward_features(pixel_values), wanted, atol=1e-4, rtol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("template", "settings", "named"),
    [
        ("ResNet", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("ConvNext", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("MobileNetV2", {"hidden_act": "tanh"}, "hidden_act = 'tanh'"),
        ("EfficientNet", {"in_channels": [32, 16, 24, 40, 80, 112, 200]}, "in_channels"),
    ],
)
def test_what_we_do_not_have_is_named(template: str, settings: dict[str, Any], named: str) -> None:
    config = getattr(transformers, f"{template}Config")(**settings)
    family: Any = resolve(PRETRAINED, config.model_type, "family")
    with pytest.raises(ModelError, match=named):
        family.config_from(config.to_dict())


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("b0", []),
        ("b1", [16]),
        ("b2", [5, 8, 16]),
        ("b3", [5, 18]),
        ("b4", [6]),
        ("b5", [13, 27]),
        ("b6", [31]),
        ("b7", [18]),
    ],
)
def test_the_blocks_with_padding_for_odd_maps_are_those_of_the_published_checkpoints(
    size: str, wanted: list[int]
) -> None:
    """The lists are in the config.json of google/efficientnet-b0 to b7."""
    assert symmetric_blocks(model_config(f"efficientnet-{size}")[1]) == wanted


def test_padding_by_size_is_written_as_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = EfficientNetConfig(width_multiplier=0.1, image_size=52, num_labels=5)
    ours = noisy(EfficientNet(config))
    save_pretrained(ours, tmp_path / "even")
    theirs = transformers.EfficientNetForImageClassification.from_pretrained(tmp_path / "even").eval()
    assert theirs.config.depthwise_padding == [3, 5]
    pixel_values = torch.randn(2, 3, 52, 52)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values).logits, ours(pixel_values), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="image_size = 53"):
        save_pretrained(EfficientNet(config.replace(image_size=53)), tmp_path / "odd")
