"""A bundle's model as vLLM opens one: a folder of the Hugging Face layout, written once and kept among cached files.

Not here: the layout itself (`deepseek.models.pretrained`, `Tokenizer.save_pretrained`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deepseek.files import atomic_folder
from deepseek.models.pretrained.fill import build_empty, stored_weights
from deepseek.models.pretrained.front import save_pretrained
from deepseek.nn.native_build import cache_folder

if TYPE_CHECKING:
    from deepseek.serve.text.models import BundleModel


def public_folder(model: BundleModel, root: Path | None = None) -> Path:
    """Return the folder with the weights and the tokenizer of a bundle; it is written where it is not there yet.

    `root` is by default `$XDG_CACHE_HOME` or `~/.cache`, then `deepseek/vllm`; a folder there has the name of the
    bundle's fingerprint and may be removed at any time no server starts.
    Raises ModelError for a model without a public counterpart, StorageError when the disk refuses.
    """
    folder = (cache_folder().parent / "vllm" if root is None else root) / model.fingerprint
    if folder.is_dir():
        return folder
    own = folder.with_name(f"{folder.name}-{os.getpid()}")
    with atomic_folder(own, replace=True) as temporary:
        save_pretrained(with_vocabulary(model.network, model.vocab_size), temporary)
        model.tokenizer.save_pretrained(temporary)
    try:
        os.rename(own, folder)
    except OSError:  # another process was faster
        shutil.rmtree(own, ignore_errors=True)
        if not folder.is_dir():
            raise
    return folder


def with_vocabulary(network: nn.Module, size: int) -> nn.Module:
    """Return a model with the first `size` tokens alone, its weights shared with `network`'s.

    A model may have room for more tokens than its tokenizer knows; those must never be chosen.
    """
    config: Any = network.config
    if size >= config.vocab_size:
        return network
    smaller = build_empty(type(network), config.replace(vocab_size=size))
    state = network.state_dict()
    for names, target in stored_weights(smaller):
        tensor = state[names[0]]
        tensor = tensor if tensor.shape == target.shape else tensor[:size]
        weight = nn.Parameter(tensor, requires_grad=False) if isinstance(target, nn.Parameter) else tensor
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(smaller.get_submodule(owner), leaf, weight)
    return smaller
