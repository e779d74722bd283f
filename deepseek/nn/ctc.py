"""Connectionist temporal classification: a loss for tokens without times, and that loss beside an attention decoder's.

CTC sums over every way to spread the tokens over the frames, with blanks between. Such a way exists only if there are
as many frames as tokens, and one more for each token that repeats the one before: where there is none the loss would
be infinite, so too short recordings are refused, by number.
Sources: Graves et al. 2006, "Connectionist Temporal Classification", doi:10.1145/1143844.1143891; Kim et al. 2017,
"Joint CTC-Attention based End-to-End Speech Recognition", arXiv:1609.06773.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deepseek.errors import DataError
from deepseek.nn.checks import check_shape
from deepseek.nn.losses import IGNORE


def label_lengths(labels: Tensor) -> Tensor:
    """Return the number of tokens (batch,) in `labels` (batch, target_time), which end in IGNORE."""
    return (labels != IGNORE).sum(dim=1)


def frames_needed(labels: Tensor) -> Tensor:
    """Return how many frames (batch,) the tokens need at least: one each, and a blank between equal neighbours."""
    repeats = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != IGNORE)
    return label_lengths(labels) + repeats.sum(dim=1)


def check_ctc(logits: Tensor, labels: Tensor, lengths: Tensor, blank_id: int) -> None:
    """Check that every text can be spread over its frames. Eager code only. Raises ModelError, DataError.

    `logits` (batch, time, vocab_size), `labels` (batch, target_time) padded with IGNORE behind, `lengths` (batch,).
    """
    if torch.compiler.is_compiling() or labels.is_meta:
        return
    check_shape("logits", logits, ("batch", "time", "vocab_size"))
    check_shape("labels", labels, (logits.shape[0], "target_time"))
    check_shape("lengths", lengths, (logits.shape[0],))
    tokens = labels[labels != IGNORE]
    if tokens.numel() and (
        int(tokens.min()) < 0 or int(tokens.max()) >= logits.shape[2] or bool((tokens == blank_id).any())
    ):
        raise DataError(
            "labels has a token that can't be spoken",
            found=f"ids {int(tokens.min())} to {int(tokens.max())}",
            wanted=f"0 to {logits.shape[2] - 1}, without the blank {blank_id}",
        )
    if bool(((labels[:, 1:] != IGNORE) & (labels[:, :-1] == IGNORE)).any()):
        raise DataError("labels has padding before a token", wanted=f"{IGNORE} at the end of a row only")
    if int(lengths.min()) < 0 or int(lengths.max()) > logits.shape[1]:
        raise DataError("lengths goes past the frames", found=lengths.tolist(), wanted=f"0 to {logits.shape[1]}")
    needed = frames_needed(labels)
    short = (needed > lengths.to(needed.device)).nonzero().flatten().tolist()
    if short:
        raise DataError(
            f"sample {short[0]} has more text than frames",
            found=f"{int(lengths[short[0]])} encoder frames",
            wanted=f"at least {int(needed[short[0]])} for its {int(label_lengths(labels)[short[0]])} tokens",
            fix="leave the sample out, or cut its text",
        )


def ctc_loss_sum(logits: Tensor, labels: Tensor, lengths: Tensor, blank_id: int = 0) -> Tensor:
    """Return -log p(text | recording) in nats, summed over the batch, a float32 scalar.

    `logits` (batch, time, vocab_size), `labels` (batch, target_time) padded with IGNORE behind, `lengths` (batch,):
    frames that count. Raises DataError where a text can't be spread over its frames.
    """
    check_ctc(logits, labels, lengths, blank_id)
    log_probs, targets = logits.float().log_softmax(-1), labels.masked_fill(labels == IGNORE, blank_id)
    without_numbers = torch.compiler.is_compiling() or logits.is_meta or isinstance(logits, FakeTensor)
    loss = _opaque_ctc if without_numbers else _ctc
    return loss(log_probs, targets, lengths, label_lengths(labels), blank_id)


def _ctc(log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, blank_id: int) -> Tensor:
    time_first = log_probs.transpose(0, 1)
    return F.ctc_loss(time_first, targets, lengths, target_lengths, blank=blank_id, reduction="sum")


# torch's kernel plans its memory by the lengths' values. Neither a compiler can follow that, nor a step on shapes,
# which reckons memory: to them it is one operator, whose gradient runs the kernel once more.
_opaque_ctc: Any = torch.library.custom_op("deepseek::ctc_loss_sum", _ctc, mutates_args=())


def _ctc_gradient(
    grad: Tensor, log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    time_first, aten = log_probs.transpose(0, 1), torch.ops.aten
    losses, log_alpha = aten._ctc_loss(time_first, targets, lengths, target_lengths, blank_id)
    each = grad.expand(losses.shape).contiguous()
    slope: Tensor = aten._ctc_loss_backward(
        each, time_first, targets, lengths, target_lengths, losses, log_alpha, blank_id
    )
    return slope.transpose(0, 1).contiguous()


_opaque_gradient: Any = torch.library.custom_op("deepseek::ctc_loss_sum_gradient", _ctc_gradient, mutates_args=())


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.blank_id = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _opaque_gradient(grad, *ctx.saved_tensors, ctx.blank_id), None, None, None, None


_opaque_ctc.register_fake(lambda log_probs, *_: log_probs.new_empty(()))
_opaque_gradient.register_fake(lambda grad, log_probs, *_: log_probs.new_empty(log_probs.shape))
_opaque_ctc.register_autograd(_backward, setup_context=_remember)


def decoder_inputs_targets(labels: Tensor, end_id: int) -> tuple[Tensor, Tensor]:
    """Return what an attention decoder reads and what it shall say, both (batch, target_time + 1).

    It reads the end token, then the text; it says the text, then the end token, then IGNORE.
    """
    batch, time = labels.shape
    ends = labels.new_full((batch, 1), end_id)
    inputs = torch.cat([ends, labels.masked_fill(labels == IGNORE, end_id)], dim=1)
    padded = torch.cat([labels, labels.new_full((batch, 1), IGNORE)], dim=1)
    is_end = torch.arange(time + 1, device=labels.device) == label_lengths(labels)[:, None]
    return inputs, padded.masked_fill(is_end, end_id)


def joint_ctc_attention_loss_sum(
    ctc_logits: Tensor,
    decoder_logits: Tensor,
    labels: Tensor,
    lengths: Tensor,
    *,
    blank_id: int,
    end_id: int,
    ctc_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return ctc_weight * CTC + (1 - ctc_weight) * cross-entropy of the decoder, both summed, a float32 scalar.

    `decoder_logits` (batch, target_time + 1, vocab_size) follow the inputs that `decoder_inputs_targets` gives; the
    others are as `ctc_loss_sum` has them.
    """
    _, targets = decoder_inputs_targets(labels, end_id)
    by_attention = F.cross_entropy(
        decoder_logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return ctc_weight * ctc_loss_sum(ctc_logits, labels, lengths, blank_id) + (1 - ctc_weight) * by_attention
