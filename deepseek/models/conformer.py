"""Conformer: speech features to tokens, with self-attention for what is far and convolution for what is near.

Convolution subsampling by four, Conformer blocks, a CTC output layer on the frames and, where asked for, an attention
decoder trained beside it. The paper's own decoder is a transducer; that is not here, as CTC and attention together
need no loss of their own and one of them alone is enough to recognise. Streaming: with causal convolutions the same
weights run over whole recordings (`forward`, under a chunk mask where `chunk_size` is set) and chunk by chunk
(`deepseek.models.conformer_stream`), with equal output. With `dynamic_chunks` one model is trained for both.
Papers: Gulati et al. 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv:2005.08100;
Watanabe et al. 2017, "Hybrid CTC/Attention Architecture", doi:10.1109/JSTSP.2017.2763455 (the two outputs).
Not here: the encoder (`conformer_encoder`), features (`deepseek.data`), the loss (`deepseek.tasks.speech`), decoding
(`deepseek.models.ctc_decoding`).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.conformer_encoder import ConformerEncoder, ConformerEncoderConfig
from deepseek.nn.attention_decoder import AttentionDecoder
from deepseek.nn.checks import check_floats, check_ids, check_shape
from deepseek.nn.config_checks import check_heads, check_in_vocabulary
from deepseek.nn.conformer_attention import RelativeSelfAttention
from deepseek.nn.conv_subsampling import REACH, subsampled_length
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.gradient_reset_gate import GradientResetGate


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


class Conformer(nn.Module):
    """Speech features to CTC logits, and to the logits of an attention decoder."""

    input_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {"input_features": ("batch", "frames", None)}

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
        check_floats("input_features", features)
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
