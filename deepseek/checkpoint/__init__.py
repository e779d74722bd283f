"""Checkpoints: what a run needs to go on, whole or absent on disk."""

from __future__ import annotations

from deepseek.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CheckpointStore": "deepseek.checkpoint.store:CheckpointStore",
        "list_checkpoints": "deepseek.checkpoint.store:list_checkpoints",
        "load_checkpoint": "deepseek.checkpoint.store:load_checkpoint",
        "load_newest": "deepseek.checkpoint.store:load_newest",
        "load_weights": "deepseek.checkpoint.weights:load_weights",
        "save_checkpoint": "deepseek.checkpoint.store:save_checkpoint",
        "save_weights": "deepseek.checkpoint.weights:save_weights",
    },
)
