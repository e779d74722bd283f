"""Checks of a model's inputs: an error that names the argument, what was found and what is wanted.

They run in eager code alone: a compiled or exported model has been through them once and keeps no trace of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.errors import ModelError


def check_shape(name: str, tensor: Tensor, wanted: Sequence[int | str]) -> None:
    """Check rank and sizes of `tensor`; a string in `wanted` names a dimension of any size. Raises ModelError.

    `check_shape("pixel_values", x, ("batch", 3, "height", "width"))`
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(tensor, Tensor):
        raise ModelError(
            f"{name} must be a tensor", found=type(tensor).__name__, wanted="torch.Tensor", fix="torch.as_tensor(...)"
        )
    shape = tensor.shape
    fits = len(shape) == len(wanted) and all(
        isinstance(size, str) or size == found for size, found in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise ModelError(
            f"{name} has the wrong shape",
            found=tuple(shape),
            wanted="(" + ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "") + ")",
        )


def check_floats(name: str, tensor: Tensor, fix: str | None = None) -> None:
    """Check that `tensor` holds floating-point numbers. Raises ModelError, which tells how to mend it by `fix`."""
    if not torch.compiler.is_compiling() and not tensor.is_floating_point():
        raise ModelError(
            f"{name} must hold floats",
            found=tensor.dtype,
            wanted="float32, normalised as in training",
            fix=fix or f"{name}.float(), scaled as in training",
        )


def check_ids(name: str, ids: Tensor, vocab_size: int, max_length: int | None = None) -> None:
    """Check token ids (batch, time): integers of 0 to vocab_size - 1, 1 to `max_length` of them a row.

    Raises ModelError.
    The range is looked at on a CPU only, where it costs no synchronisation.
    """
    if torch.compiler.is_compiling():
        return
    check_shape(name, ids, ("batch", "time"))
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ModelError(f"{name} must hold token numbers", found=ids.dtype, wanted="int64")
    if ids.shape[1] == 0:
        raise ModelError(f"{name} is empty", found="0 tokens", wanted="at least 1", fix="begin with a start token")
    if max_length is not None and ids.shape[1] > max_length:
        raise ModelError(
            f"{name} is too long",
            found=f"{ids.shape[1]} tokens",
            wanted=f"at most max_length = {max_length}",
            fix="shorten the text, or use a model with a larger max_length",
        )
    if ids.device.type == "cpu" and ids.numel() and type(ids) is Tensor:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise ModelError(
                f"{name} has a token the model does not know",
                found=f"ids {low} to {high}",
                wanted=f"0 to {vocab_size - 1}",
                fix="use the tokenizer the model was trained with",
            )


def check_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> None:
    """Check a mask (1 or True: look, 0 or False: ignore) of the given sizes, None passes. Raises ModelError."""
    if mask is None or torch.compiler.is_compiling():
        return
    check_shape(name, mask, tuple(shape))
    if mask.is_floating_point():  # masks to be added to scores mean the opposite: 0 is "look"
        raise ModelError(
            f"{name} must hold whole numbers",
            found=mask.dtype,
            wanted="int64 or bool: 1 or True at tokens, 0 at padding",
        )
