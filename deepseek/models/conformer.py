"""Conformer: speech features to tokens, with self-attention for what is far and convolution for what is near.

Convolution subsampling by four, Conformer blocks, a CTC output layer on the frames and, where asked for, an attention
decoder trained beside it. The paper's own decoder is a transducer; that is not here, as CTC and attention together
need no loss of their own and one of them alone is enough to recognise. Streaming: with causal convolutions the same
weights run over whole recordings (`forward`, under a chunk mask where `chunk_size` is set) and chunk by chunk
(`deepseek.models.conformer_stream`), with equal output.
Papers: Gulati et al. 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv:2005.08100;
Watanabe et al. 2017, "Hybrid CTC/Attention Architecture", doi:10.1109/JSTSP.2017.2763455 (the two outputs).
Not here: features (`deepseek.data`), the loss (`deepseek.tasks.speech`), decoding (`deepseek.models.ctc_decoding`).
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.nn.attention_decoder import AttentionDecoder
from deepseek.nn.checks import check_ids, check_shape
from deepseek.nn.config_checks import check_heads, check_in_vocabulary
from deepseek.nn.conformer_attention import FrameContext, RelativeSelfAttention, relative_positions
from deepseek.nn.conformer_conv import ConformerConv
from deepseek.nn.conv_subsampling import REACH, ConvSubsampling, subsampled_length
from deepseek.nn.dropout import dropout
from deepseek.nn.dynamic_conv import DynamicConv, DynamicConvAttention
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.gradient_reset_gate import GradientResetGate
from deepseek.nn.masks import chunk_mask
from deepseek.nn.recompute import recomputed
from deepseek.nn.streaming_block import BlockState, StreamingBlock


class ConformerEncoderConfig(Config):
    """Sizes and variants of the encoder."""

    assignable: ClassVar[frozenset[str]] = frozenset({"chunk_size", "left_chunks"})

    num_mels: int = Field(default=80, ge=7, le=4096)
    """Features a frame: mel bands, or coefficients."""
    num_layers: int = Field(default=16, ge=1, le=1024)
    """Number of Conformer blocks."""
    d_model: int = Field(default=256, ge=2, le=1 << 16, multiple_of=2)
    """Width of the encoder."""
    attention_heads: int = Field(default=4, ge=1, le=1024)
    """Attention heads; divides d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    conv_kernel: int = Field(default=32, ge=1, le=1024)
    """Frames that the depthwise convolution spans."""
    conv_norm: Literal["batch", "layer"] = "batch"
    """Norm in the convolution module: the paper's batch norm, or layer norm for small batches."""
    attention: Literal["self", "dynamic_conv"] = "self"
    """Self-attention alone, or mixed with a dynamic convolution for each channel."""
    dynamic_kernel: int = Field(default=15, ge=1, le=1024)
    """Frames that the dynamic convolution spans, where attention is dynamic_conv."""
    reset_gate: bool = False
    """A gated memory in each block, which a frame can close, for what came before the frames attention sees."""
    causal: bool = False
    """Convolutions look back only; streaming needs it."""
    chunk_size: int | None = Field(default=None, ge=1, le=1 << 16)
    """Encoder frames (of four feature frames) in a chunk: attention sees its own chunk and those before; null: all."""
    left_chunks: int | None = Field(default=None, ge=0, le=1 << 16)
    """Chunks before its own that attention sees; null: all of them."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of activations set to zero in training."""

    @model_validator(mode="after")
    def _fits(self) -> ConformerEncoderConfig:
        check_heads(self.d_model, self.attention_heads, "d_model", "attention_heads")
        if self.chunk_size is not None and not self.causal:
            raise ValueError(
                f"chunk_size {self.chunk_size} needs convolutions that look back only; nearest that fits: causal true"
            )
        if self.left_chunks is not None and self.chunk_size is None:
            raise ValueError(
                f"left_chunks {self.left_chunks} has no chunks to count; nearest that fits: chunk_size 16, "
                "or left_chunks null"
            )
        return self


class ConformerDecoderConfig(Config):
    """The output side: tokens of CTC, and the attention decoder."""

    vocab_size: int = Field(default=1024, ge=3, le=1 << 24)
    """Number of tokens, the blank and the end token among them."""
    embedding_dim: int | None = Field(default=None, ge=2, le=1 << 16, multiple_of=2)
    """Width of the attention decoder; null: there is none, CTC alone."""
    num_layers: int = Field(default=1, ge=1, le=1024)
    """Decoder blocks; one, as the paper's decoder has one layer."""
    attention_heads: int | None = Field(default=None, ge=1, le=1024)
    """Attention heads of the decoder; null picks heads of 64 (or of embedding_dim, where 64 does not divide it)."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the decoder's feed-forward layers; null is 4 * embedding_dim."""
    tie_embeddings: bool = True
    """The decoder's output layer shares the embedding's weight."""
    blank_id: int = Field(default=0, ge=0)
    """CTC's token for "nothing new"."""
    end_id: int | None = Field(default=None, ge=0)
    """Begins and ends a text in the attention decoder; null is the last token."""

    @model_validator(mode="after")
    def _fits(self) -> ConformerDecoderConfig:
        if self.embedding_dim is not None and self.attention_heads is not None:
            check_heads(self.embedding_dim, self.attention_heads, "embedding_dim", "attention_heads")
        check_in_vocabulary(self.vocab_size, blank_id=self.blank_id, end_id=self.end)
        if self.blank_id == self.end:
            raise ValueError(
                f"blank_id and end_id are both {self.end}; nearest that fits: end_id {(self.end or 2) - 1}"
            )
        return self

    @property
    def end(self) -> int:
        """The token that begins and ends a text, the default resolved."""
        return self.vocab_size - 1 if self.end_id is None else self.end_id


class ConformerConfig(Config):
    """Sizes of a Conformer."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    encoder: ConformerEncoderConfig = Field(default_factory=ConformerEncoderConfig)
    """Features to frames."""
    decoder: ConformerDecoderConfig = Field(default_factory=ConformerDecoderConfig)
    """Frames to tokens."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""


class ConformerOutput(NamedTuple):
    """What a Conformer says of a batch."""

    ctc_logits: Tensor
    """(batch, time, vocab_size), time being about a quarter of the frames."""
    decoder_logits: Tensor | None
    """(batch, target_time, vocab_size), the next token after each of `decoder_input_ids`; None without these."""
    lengths: Tensor
    """(batch,) of int64: the frames of `ctc_logits` that count."""


class ConformerEncoder(nn.Module):
    """Features (batch, frames, num_mels) to frames (batch, time, d_model)."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = ConvSubsampling(config.num_mels, config.d_model)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))

    def forward(self, features: Tensor, lengths: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """Return the frames and whether each counts, (batch, time) of bool. `lengths` (batch,): feature frames."""
        config = self.config
        x = dropout(self.subsampling(features), config.dropout, self.training)
        time = x.shape[1]
        valid = torch.arange(time, device=x.device) < subsampled_length(lengths)[:, None]
        mask = valid[:, None, None, :]
        if config.chunk_size is not None:
            mask = mask & chunk_mask(time, config.chunk_size, config.left_chunks, x.device)
        mask = mask | torch.eye(time, dtype=torch.bool, device=x.device)  # padding sees itself: no empty rows
        context = FrameContext(relative_positions(time, time, config.d_model, x), mask, valid)
        for block in self.blocks:
            x = recomputed(checkpointing and self.training, block, x, context)
        return x, valid

    def stream(self, features: Tensor, past: list[BlockState]) -> tuple[Tensor, list[BlockState]]:
        """Return the frames of the next chunk and the state after it; `features` are the chunk's own, with the
        REACH - STRIDE frames that follow it."""
        x = self.subsampling(features)
        seen = past[0].attention[0].shape[2]
        context = FrameContext(relative_positions(x.shape[1], seen + x.shape[1], self.config.d_model, x))
        states = []
        for block, before in zip(self.blocks, past, strict=True):
            x, state = block.stream(x, context, before)  # type: ignore[operator]
            states.append(state)
        return x, states


class Conformer(nn.Module):
    """Speech features to CTC logits, and to the logits of an attention decoder."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder = config.encoder.d_model, config.decoder
        self.encoder = ConformerEncoder(config.encoder)
        self.ctc_head = nn.Linear(width, decoder.vocab_size)
        self.decoder: AttentionDecoder | None = None
        if decoder.embedding_dim is not None:
            dim = decoder.embedding_dim
            self.decoder = AttentionDecoder(
                decoder.vocab_size,
                dim,
                width,
                num_layers=decoder.num_layers,
                num_heads=decoder.attention_heads or (dim // 64 if dim % 64 == 0 else 1),
                d_ff=decoder.d_ff or 4 * dim,
                dropout=config.encoder.dropout,
                tie_embeddings=decoder.tie_embeddings,
            )
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers, the convolutions as torch starts them, no biases, embeddings of 1/sqrt(dim)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, RelativeSelfAttention):
                nn.init.xavier_uniform_(module.content_bias)
                nn.init.xavier_uniform_(module.position_bias)
        for module in self.modules():
            if isinstance(module, GradientResetGate):
                module.init_gate()
            if isinstance(module, nn.Embedding):  # last: the decoder's output layer may share it
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def forward(
        self, input_features: Tensor, lengths: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> ConformerOutput:
        """Return logits for `input_features` (batch, frames, num_mels).

        `lengths` (batch,) of int64: the frames of each recording that count, all unless given; what is behind them
        changes nothing. `decoder_input_ids` (batch, target_time): the end token, then the text. Raises ModelError.
        """
        self._check(input_features, lengths, decoder_input_ids)
        if lengths is None:
            lengths = torch.full((input_features.shape[0],), input_features.shape[1], device=input_features.device)
        features = input_features.to(float_tensor(self.ctc_head).dtype)
        frames, valid = self.encoder(features, lengths, self.config.gradient_checkpointing)
        decoder_logits = None
        if self.decoder is not None and decoder_input_ids is not None:
            decoder_logits = self.decoder(decoder_input_ids, frames, valid[:, None, None, :])
        return ConformerOutput(self.ctc_head(frames), decoder_logits, subsampled_length(lengths))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return 67 feature frames a row (16 after subsampling) and, with a decoder, five tokens."""
        generator, device = torch.Generator().manual_seed(0), float_tensor(self.ctc_head).device
        config = self.config
        features = torch.randn(batch_size, 67, config.encoder.num_mels, generator=generator)
        inputs = {"input_features": features, "lengths": torch.full((batch_size,), 67)}
        if self.decoder is not None:
            ids = torch.randint(config.decoder.vocab_size, (batch_size, 5), generator=generator)
            inputs["decoder_input_ids"] = ids
        return {name: value.to(device) for name, value in inputs.items()}

    def _check(self, features: Tensor, lengths: Tensor | None, decoder_input_ids: Tensor | None) -> None:
        check_shape("input_features", features, ("batch", "frames", self.config.encoder.num_mels))
        if torch.compiler.is_compiling():
            return
        batch, frames = features.shape[:2]
        if frames < REACH:
            raise ModelError("input_features is too short", found=f"{frames} frames", wanted=f"at least {REACH}")
        if self.training and self.config.encoder.conv_norm == "batch" and batch * subsampled_length(frames) == 1:
            raise ModelError(
                "input_features is too small for batch norm in training",
                found="one encoder frame in all",
                wanted="at least two",
                fix="give longer or more recordings, or set encoder.conv_norm to layer",
            )
        if lengths is not None:
            check_shape("lengths", lengths, (batch,))
            if lengths.device.type == "cpu" and not bool(((lengths >= REACH) & (lengths <= frames)).all()):
                raise ModelError("lengths has a wrong number", found=lengths.tolist(), wanted=f"{REACH} to {frames}")
        if decoder_input_ids is None:
            return
        if self.decoder is None:
            raise ModelError(
                "decoder_input_ids has no decoder to read it",
                found="a Conformer with CTC alone",
                fix="leave it out, or set decoder.embedding_dim",
            )
        check_ids("decoder_input_ids", decoder_input_ids, self.config.decoder.vocab_size)
        check_shape("decoder_input_ids", decoder_input_ids, (batch, "time"))


def _block(config: ConformerEncoderConfig) -> StreamingBlock:
    width, dropout = config.d_model, config.dropout
    attention: RelativeSelfAttention | DynamicConvAttention
    attention = RelativeSelfAttention(width, config.attention_heads, dropout=dropout)
    if config.attention == "dynamic_conv":
        near = DynamicConv(width, config.attention_heads, config.dynamic_kernel, causal=config.causal, dropout=dropout)
        attention = DynamicConvAttention(attention, near)
    return StreamingBlock(
        width,
        config.d_ff or 4 * width,
        attention=attention,
        convolution=ConformerConv(
            width, config.conv_kernel, causal=config.causal, dropout=dropout, norm=config.conv_norm
        ),
        memory=GradientResetGate(width) if config.reset_gate else None,
        dropout=dropout,
    )
