"""Our Conformer block against that of transformers' Wav2Vec2-Conformer, the closest public relative: equal outputs.

Their pointwise layers have no biases, their positions mix sines and cosines the other way round; the rest is the paper.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoderLayer,
    Wav2Vec2ConformerRelPositionalEmbedding,
)

from deepseek.models.conformer import Conformer, ConformerConfig
from deepseek.nn.conformer_attention import FrameContext, relative_positions


def ours_from(theirs: Wav2Vec2ConformerEncoderLayer, config: ConformerConfig) -> torch.nn.Module:
    block = Conformer(config).eval().encoder.blocks[0]
    state, width = theirs.state_dict(), config.encoder.d_model
    for name, source in (
        ("first_feed_forward", "ffn1"),
        ("second_feed_forward", "ffn2"),
        ("attention_norm", "self_attn_layer_norm"),
        ("norm", "final_layer_norm"),
        ("attention.out", "self_attn.linear_out"),
        ("convolution.norm", "conv_module.layer_norm"),
        ("convolution.inner_norm", "conv_module.batch_norm"),
        ("convolution.depthwise", "conv_module.depthwise_conv"),
    ):
        target = block.get_submodule(name)
        if "feed_forward" in name:
            target.norm.load_state_dict(part(state, f"{source}_layer_norm."))
            target.up.load_state_dict(part(state, f"{source}.intermediate_dense."))
            target.down.load_state_dict(part(state, f"{source}.output_dense."))
        else:
            target.load_state_dict(part(state, f"{source}."))
    attention, convolution = block.attention, block.convolution
    with torch.no_grad():
        for kind in ("weight", "bias"):
            joined = torch.cat([state[f"self_attn.linear_{letter}.{kind}"] for letter in "qkv"])
            getattr(attention.qkv, kind).copy_(joined)
        order = [*range(0, width, 2), *range(1, width, 2)]  # sines first
        attention.position.weight.copy_(state["self_attn.linear_pos.weight"][:, order])
        attention.content_bias.copy_(state["self_attn.pos_bias_u"][:, None])
        attention.position_bias.copy_(state["self_attn.pos_bias_v"][:, None])
        for ours, other in ((convolution.expand, "pointwise_conv1"), (convolution.contract, "pointwise_conv2")):
            ours.weight.copy_(state[f"conv_module.{other}.weight"][..., 0])
            ours.bias.zero_()
    return block


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("width", "heads", "kernel", "time"), [(16, 2, 7, 11), (24, 4, 3, 1), (8, 1, 31, 20)])
def test_block_gives_the_same_frames_and_gradients(width: int, heads: int, kernel: int, time: int) -> None:
    theirs_config = Wav2Vec2ConformerConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=heads,
        conv_depthwise_kernel_size=kernel,
        hidden_act="swish",
        position_embeddings_type="relative",
        attn_implementation="eager",
    )
    theirs = Wav2Vec2ConformerEncoderLayer(theirs_config).eval()
    with torch.no_grad():
        for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if value.is_floating_point():
                value.add_(torch.randn_like(value).abs() if "running_var" in name else torch.randn_like(value) * 0.2)
    encoder = {"num_layers": 1, "d_model": width, "attention_heads": heads, "d_ff": 3 * width, "conv_kernel": kernel}
    ours = ours_from(theirs, ConformerConfig(encoder={"num_mels": 8, **encoder}))

    first, second = (torch.randn(2, time, width, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    positions = Wav2Vec2ConformerRelPositionalEmbedding(theirs_config)(first)
    wanted = theirs(first.requires_grad_(), relative_position_embeddings=positions)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    found = ours(second.requires_grad_(), FrameContext(relative_positions(time, time, width, second)))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    wanted.sin().sum().backward()
    found.sin().sum().backward()
    torch.testing.assert_close(second.grad, first.grad, atol=1e-3, rtol=1e-3)
