"""Every family of public checkpoints against transformers at sizes drawn at random: logits, gradients, files.

What is special to a family, its options and its errors, is in the file of its name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.parity import test_clip, test_convnets, test_deepseek_moe, test_llama, test_swin, test_vit
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")


class Drawn(NamedTuple):
    """A model of theirs, what it is asked, and how `check_family` shall compare."""

    model: Any
    inputs: dict[str, Tensor]
    compared: dict[str, Any] = {}


class Draw(random.Random):
    """Draws sizes."""

    def heads(self, largest: int = 4, dims: tuple[int, ...] = (2, 4, 6, 8)) -> tuple[int, int]:
        """Return a width and a number of heads that divides it."""
        heads = self.randint(1, largest)
        return heads * self.choice(dims), heads

    def ids(self, vocab_size: int, longest: int, batch: int | None = None) -> Tensor:
        """Return token ids (batch, time)."""
        return torch.randint(vocab_size, (batch or self.randint(1, 3), self.randint(1, longest)))

    def padding(self, ids: Tensor) -> Tensor:
        """Return a mask of the ids' shape: each row ends in padding, or not."""
        ends = torch.randint(1, ids.shape[1] + 1, (ids.shape[0], 1))
        return (torch.arange(ids.shape[1]) < ends).long()

    def maybe(self, **settings: Any) -> dict[str, Any]:
        """Return the settings, or none of them."""
        return settings if self.random() < 0.5 else {}


def bert(draw: Draw) -> Drawn:
    width, heads = draw.heads()
    config = transformers.BertConfig(
        vocab_size=draw.randint(20, 90),
        hidden_size=width,
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads,
        intermediate_size=draw.randint(5, 50),
        max_position_embeddings=draw.randint(16, 40),
        type_vocab_size=draw.randint(1, 3),
        layer_norm_eps=draw.choice([1e-12, 1e-5, 1e-3]),
        hidden_act=draw.choice(["gelu", "gelu_new"]),
        num_labels=draw.randint(2, 6),
    )
    kind = draw.choice(["BertForMaskedLM", "BertForSequenceClassification"])
    ids = draw.ids(config.vocab_size, config.max_position_embeddings)
    types = torch.randint(config.type_vocab_size, ids.shape)
    inputs = {"input_ids": ids, **draw.maybe(attention_mask=draw.padding(ids)), **draw.maybe(token_type_ids=types)}
    return Drawn(noisy(getattr(transformers, kind)(config), 0.1), inputs)


def gpt2(draw: Draw) -> Drawn:
    width, heads = draw.heads()
    config = transformers.GPT2Config(
        vocab_size=draw.randint(20, 90),
        n_positions=draw.randint(16, 40),
        n_embd=width,
        n_layer=draw.randint(1, 3),
        n_head=heads,
        layer_norm_epsilon=draw.choice([1e-5, 1e-3]),
        tie_word_embeddings=draw.random() < 0.5,
        bos_token_id=None,
        eos_token_id=None,
        **draw.maybe(n_inner=draw.randint(5, 60)),
    )
    ids = draw.ids(config.vocab_size, config.n_positions)
    return Drawn(noisy(transformers.GPT2LMHeadModel(config), 0.1), {"input_ids": ids})


def llama(draw: Draw) -> Drawn:
    scaling = draw.choice(list(test_llama.SCALINGS.values()))
    config = transformers.LlamaConfig(
        **test_llama.sizes(draw.randrange(1000)),
        **draw.maybe(head_dim=draw.choice([4, 10])),
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        tie_word_embeddings=draw.random() < 0.5,
        rope_parameters={**scaling, "rope_theta": draw.choice([100.0, 1e4, 5e5])},
    )
    model = noisy(transformers.LlamaForCausalLM(config), 0.1)
    return Drawn(model, {"input_ids": draw.ids(config.vocab_size, 64)})


def qwen2(draw: Draw) -> Drawn:
    sizes = test_llama.sizes(draw.randrange(1000))
    config = transformers.Qwen2Config(**sizes, tie_word_embeddings=draw.random() < 0.5)
    model = noisy(transformers.Qwen2ForCausalLM(config), 0.1)
    return Drawn(model, {"input_ids": draw.ids(config.vocab_size, 64)})


def t5(draw: Draw) -> Drawn:
    config = transformers.T5Config(
        vocab_size=draw.randint(20, 90),
        d_model=draw.randint(4, 30),
        d_kv=draw.randint(2, 9),
        num_heads=draw.randint(1, 4),
        num_layers=draw.randint(1, 3),
        num_decoder_layers=draw.randint(1, 3),
        d_ff=draw.randint(5, 50),
        relative_attention_num_buckets=draw.choice([4, 8, 32]),
        relative_attention_max_distance=draw.choice([20, 64, 128]),
        feed_forward_proj=draw.choice(["relu", "gated-gelu"]),
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    ids = draw.ids(config.vocab_size, 40)
    answer = draw.ids(config.vocab_size, 30, batch=ids.shape[0])
    inputs = {"input_ids": ids, "decoder_input_ids": answer, **draw.maybe(attention_mask=draw.padding(ids))}
    return Drawn(noisy(transformers.T5ForConditionalGeneration(config)), inputs)


def deepseek(draw: Draw, version: str) -> Drawn:
    groups, heads = draw.choice([1, 2, 4]), draw.randint(1, 4)
    of_version: dict[str, Any]
    if version == "V2":
        of_version = {"topk_method": draw.choice(["greedy", "group_limited_greedy"])}
    else:
        of_version = {"norm_topk_prob": draw.random() < 0.5, "rope_interleave": draw.random() < 0.5}
    sizes = {  # their products by groups and their complex numbers want multiples of four and of two
        **test_deepseek_moe.SIZES,
        "vocab_size": draw.randint(20, 90),
        "hidden_size": 4 * heads * draw.randint(1, 3),
        "intermediate_size": draw.randint(5, 50),
        "moe_intermediate_size": 4 * draw.randint(1, 5),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "kv_lora_rank": 2 * draw.randint(2, 6),
        "q_lora_rank": draw.choice([None, 7, 14]),
        "qk_nope_head_dim": 2 * draw.randint(1, 4),
        "qk_rope_head_dim": draw.choice([2, 4, 8]),
        "v_head_dim": draw.randint(2, 9),
        "n_group": groups,
        "topk_group": draw.randint(1, groups),
        "n_shared_experts": draw.randint(1, 2),
        "num_experts_per_tok": draw.randint(1, 2),
        "first_k_dense_replace": draw.randint(0, 1),
        "routed_scaling_factor": draw.choice([1.0, 2.5]),
        **of_version,
    }
    config = getattr(transformers, f"Deepseek{version}Config")(**sizes)
    model = noisy(getattr(transformers, f"Deepseek{version}ForCausalLM")(config), 0.1)
    return Drawn(model, {"input_ids": draw.ids(config.vocab_size, 40)}, {"in_file": test_deepseek_moe.in_file})


def image(draw: Draw, channels: int, smallest: int = 33, largest: int = 70) -> dict[str, Tensor]:
    """Return one or two images of any size."""
    size = draw.randint(1, 2), channels, draw.randint(smallest, largest), draw.randint(smallest, largest)
    return {"pixel_values": torch.randn(size)}


def convnet(draw: Draw, template: str) -> Drawn:
    stages, channels, tenths = draw.randint(1, 3), draw.randint(1, 4), draw.randint(1, 3)
    sizes: dict[str, dict[str, Any]] = {
        "ResNet": {
            "embedding_size": 2 * draw.randint(2, 5),
            "hidden_sizes": [4 * draw.randint(1, 6) for _ in range(stages)],
            "depths": [draw.randint(1, 2) for _ in range(stages)],
            "layer_type": draw.choice(["basic", "bottleneck"]),
            "downsample_in_first_stage": draw.random() < 0.5,
        },
        "MobileNetV2": {
            "depth_multiplier": draw.choice([0.1, 0.25]),
            "depth_divisible_by": draw.choice([2, 4, 8]),
            "min_depth": 4,
            "tf_padding": draw.random() < 0.5,
            "output_stride": draw.choice([8, 16, 32]),
            "expand_ratio": draw.choice([2.0, 6.0]),
            "finegrained_output": draw.random() < 0.5,
            "first_layer_is_expansion": draw.random() < 0.5,
        },
        "EfficientNet": {
            "width_coefficient": tenths / 10,
            "depth_coefficient": draw.choice([0.3, 0.6, 1.1]),
            "hidden_dim": 128 * tenths,
            "squeeze_expansion_ratio": draw.choice([0.25, 0.5]),
        },
        "ConvNext": {
            "hidden_sizes": [4 * draw.randint(1, 5) for _ in range(stages)],
            "depths": [draw.randint(1, 2) for _ in range(stages)],
            "num_stages": stages,
            "patch_size": draw.choice([2, 3, 4]),
            "layer_norm_eps": draw.choice([1e-12, 1e-3]),
        },
    }
    model = test_convnets.their_model(template, {"num_channels": channels, **sizes[template]}, draw.randrange(1000))
    return Drawn(model, image(draw, channels))


def vit(draw: Draw) -> Drawn:
    width, heads = draw.heads()
    patch = [draw.randint(3, 9), draw.randint(3, 9)]
    size = [draw.randint(patch[0], 30), draw.randint(patch[1], 30)]
    channels = draw.randint(1, 4)
    config = transformers.ViTConfig(
        image_size=size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=draw.randint(1, 3),
        intermediate_size=draw.randint(5, 50),
        qkv_bias=draw.random() < 0.5,
        layer_norm_eps=draw.choice([1e-12, 1e-3]),
        num_labels=draw.randint(2, 6),
    )
    pixels = torch.randn(draw.randint(1, 3), channels, *size)
    model = noisy(transformers.ViTForImageClassification(config))
    return Drawn(model, {"pixel_values": pixels}, {"in_file": test_vit.in_file})


def swin(draw: Draw) -> Drawn:
    stages, channels = draw.randint(1, 3), draw.randint(1, 4)
    window, patch, first = draw.randint(2, 5), draw.randint(2, 4), draw.randint(1, 2)
    model = test_swin.theirs(
        window,
        patch_size=patch,
        num_channels=channels,
        embed_dim=4 * first,
        depths=[draw.randint(1, 3) for _ in range(stages)],
        num_heads=[first * 2**stage for stage in range(stages)],
        mlp_ratio=draw.choice([1.0, 2.5, 4.0]),
        qkv_bias=draw.random() < 0.5,
    )
    least = window * patch * 2 ** (stages - 1)  # a window in the last stage: theirs shrinks windows for good
    return Drawn(model, image(draw, channels, least, least + 30), {"in_file": test_swin.in_file})


def clip(draw: Draw) -> Drawn:
    activation, channels = draw.choice(["quick_gelu", "gelu"]), draw.randint(1, 4)
    towers = []
    for _ in range(2):
        width, heads = draw.heads()
        sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": draw.randint(5, 50)}
        towers.append({**sizes, "num_hidden_layers": draw.randint(1, 3), "hidden_act": activation})
    vocab_size, side, eos = draw.randint(20, 90), draw.randint(8, 30), draw.choice([2, 5])
    tokens = {"max_position_embeddings": 20, "eos_token_id": eos, "bos_token_id": 0, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**towers[0], **tokens, "vocab_size": vocab_size},
        vision_config={
            **towers[1],
            "image_size": side,
            "patch_size": draw.randint(3, 8),
            "num_channels": channels,
        },
        projection_dim=draw.randint(2, 20),
    )
    ids = draw.ids(vocab_size, 20)
    ids[:, -1] = vocab_size - 1 if eos == 2 else eos
    inputs = {"input_ids": ids, "pixel_values": torch.randn(draw.randint(1, 3), channels, side, side)}
    compared = {"pick": test_clip.their_answer, "pick_ours": test_clip.our_answer}
    return Drawn(noisy(transformers.CLIPModel(config)), inputs, compared)


def whisper(draw: Draw) -> Drawn:
    heads, other = draw.choice([(1, 2), (2, 2), (4, 2), (3, 6)])
    frames = draw.randint(4, 20)
    config = transformers.WhisperConfig(
        vocab_size=draw.randint(30, 90),
        num_mel_bins=draw.randint(3, 12),
        d_model=12 * draw.randint(1, 3),
        encoder_layers=draw.randint(1, 3),
        decoder_layers=draw.randint(1, 3),
        encoder_attention_heads=heads,
        decoder_attention_heads=other,
        encoder_ffn_dim=draw.randint(5, 50),
        decoder_ffn_dim=draw.randint(5, 50),
        max_source_positions=frames,
        max_target_positions=20,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    features = torch.randn(draw.randint(1, 3), config.num_mel_bins, 2 * frames)
    answer = draw.ids(config.vocab_size, 20, batch=features.shape[0])
    model = noisy(transformers.WhisperForConditionalGeneration(config))
    return Drawn(model, {"input_features": features, "decoder_input_ids": answer})


FAMILIES: dict[str, Callable[[Draw], Drawn]] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "qwen2": qwen2,
    "t5": t5,
    "deepseek_v2": lambda draw: deepseek(draw, "V2"),
    "deepseek_v3": lambda draw: deepseek(draw, "V3"),
    "resnet": lambda draw: convnet(draw, "ResNet"),
    "mobilenet_v2": lambda draw: convnet(draw, "MobileNetV2"),
    "efficientnet": lambda draw: convnet(draw, "EfficientNet"),
    "convnext": lambda draw: convnet(draw, "ConvNext"),
    "vit": vit,
    "swin": swin,
    "clip": clip,
    "whisper": whisper,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(2))
def test_a_drawn_size_is_theirs(family: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    drawn = FAMILIES[family](Draw(f"{family} {seed}"))
    check_family(drawn.model, drawn.inputs, tmp_path, **drawn.compared)


def test_every_family_is_drawn() -> None:
    from deepseek.registry import PRETRAINED

    assert set(FAMILIES) == set(PRETRAINED)
