"""Checks that the configs of many templates share; each raises ValueError, as validators do, with the nearest fit.

Not here: checks of tensors (`checks`).
"""

from __future__ import annotations


def check_heads(width: int, num_heads: int, name: str = "d_model", heads_name: str = "num_heads") -> None:
    """Check that `width` splits into `num_heads` equal heads; the names are those of the two settings."""
    if width % num_heads:
        fitting = [heads for heads in range(1, width + 1) if width % heads == 0]
        nearest = min(fitting, key=lambda heads: abs(heads - num_heads))
        raise ValueError(
            f"{name} {width} can't be split into {num_heads} heads; nearest that fits: {heads_name} {nearest}"
        )


def check_in_vocabulary(vocab_size: int, **ids: int | None) -> None:
    """Check that each token id, given by its setting's name, is below `vocab_size`; None is no token."""
    for name, token in ids.items():
        if token is not None and token >= vocab_size:
            raise ValueError(f"{name} {token} is not in the vocabulary; nearest that fits: {name} {vocab_size - 1}")
