"""Which rank of how many this process is."""

from __future__ import annotations

import os

import torch

from deepseek.errors import ConfigError


def default_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world_size): as given, else of torch.distributed, else $RANK and $WORLD_SIZE, else (0, 1).

    Raises ConfigError where only one of the two is given, and for an environment that holds no numbers.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(
            "rank and world_size go together", found=f"rank={rank}, world_size={world_size}", wanted="both or neither"
        )
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(found[0]), int(found[1])
    except ValueError:
        raise ConfigError(
            "RANK or WORLD_SIZE in the environment is no number",
            found=f"RANK={found[0]}, WORLD_SIZE={found[1]}",
            wanted="two integers, as torchrun sets them",
        ) from None
