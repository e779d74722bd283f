"""Streaming recognition with a Conformer: features in pieces of any size, CTC logits as soon as a chunk is whole.

The output equals the model's `forward` over the whole recording under the same chunk mask. Latency is bounded: a frame
waits for the end of its chunk and three feature frames more, and sees nothing later. With `left_chunks` set, the state
does not grow either.
Not here: audio to features, tokens to text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.conformer import Conformer
from deepseek.nn.checks import check_shape
from deepseek.nn.conv_subsampling import REACH, STRIDE
from deepseek.nn.float_tensor import float_tensor


class ConformerStream:
    """One batch of recordings that arrive in step. Chunks are those of `model.config.encoder` at the start.

    `push` takes feature frames, `finish` ends the recording; both return the CTC logits of the new frames.
    Raises ModelError for a model in training mode, one with convolutions that look ahead, or one without a chunk size.
    """

    def __init__(self, model: Conformer, batch_size: int = 1) -> None:
        config = model.config.encoder
        if not config.causal or config.chunk_size is None:
            raise ModelError(
                "the model can't stream",
                found=f"encoder.causal {config.causal}, encoder.chunk_size {config.chunk_size}",
                wanted="causal convolutions and a chunk size",
                fix="set encoder.causal before training, and encoder.chunk_size (16, for example) before streaming",
            )
        if model.training:
            raise ModelError("the model is in training mode", fix="call model.eval() before streaming")
        self.model = model
        self.chunk_size = config.chunk_size
        self.kept_frames = None if config.left_chunks is None else config.left_chunks * config.chunk_size
        self.states = [block.start(batch_size) for block in model.encoder.blocks]  # type: ignore[operator]
        self.waiting = float_tensor(model.ctc_head).new_zeros(batch_size, 0, config.num_mels)
        self.finished = False

    @property
    def chunk_frames(self) -> int:
        """Feature frames that must have come before a chunk is answered."""
        return STRIDE * (self.chunk_size - 1) + REACH

    @property
    def state_bytes(self) -> int:
        """Bytes kept between chunks."""
        kept = [
            x for state in self.states for x in (*state.attention, state.convolution, state.memory) if x is not None
        ]
        return sum(x.nbytes for x in (*kept, self.waiting))

    def push(self, input_features: Tensor) -> Tensor:
        """Return logits (batch, new_time, vocab_size) of the chunks that `input_features` complete; new_time may be 0.

        `input_features` (batch, frames, num_mels): any number of frames.
        """
        self._check(input_features)
        self.waiting = torch.cat([self.waiting, input_features.to(self.waiting)], dim=1)
        logits = [self._empty()]
        while self.waiting.shape[1] >= self.chunk_frames:
            logits.append(self._answer(self.waiting[:, : self.chunk_frames]))
            self.waiting = self.waiting[:, STRIDE * self.chunk_size :]
        return torch.cat(logits, dim=1)

    def finish(self) -> Tensor:
        """Return the logits of what is left, (batch, new_time, vocab_size). The stream takes no more frames."""
        self._check(None)
        self.finished = True
        return self._answer(self.waiting) if self.waiting.shape[1] >= REACH else self._empty()

    def _answer(self, features: Tensor) -> Tensor:
        with torch.inference_mode():
            frames, states = self.model.encoder.stream(features, self.states)
            if self.kept_frames is not None:
                states = [state.last(self.kept_frames) for state in states]
            self.states = states
            logits: Tensor = self.model.ctc_head(frames)
            return logits

    def _empty(self) -> Tensor:
        return self.waiting.new_zeros(self.waiting.shape[0], 0, self.model.config.decoder.vocab_size)

    def _check(self, features: Tensor | None) -> None:
        if self.finished:
            raise ModelError("the stream has ended", fix="begin a new ConformerStream for another recording")
        if features is not None:
            check_shape("input_features", features, (self.waiting.shape[0], "frames", self.waiting.shape[2]))
