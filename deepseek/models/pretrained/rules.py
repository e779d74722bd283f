"""How a checkpoint of the Hugging Face layout maps to a template: plain data, read in both directions.

Not here: files (`store`), and the families themselves (one file each beside this one, named in `registry.PRETRAINED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Rule:
    """Names of the same weights, ours and theirs.

    `{}` stands for an index and is the same on both sides, in order. Names that end in "." are prefixes: what follows
    is equal on both sides. How the tensors relate:
    "copy": equal. "transpose": ours is theirs with its two dims swapped. "concat": ours is several of theirs, of equal
    sizes, one after the other along dim 0. "stack": theirs has one more index, written `{e}`; ours is all of them
    stacked along a new dim 0.
    """

    ours: str
    theirs: str | tuple[str, ...]
    how: Literal["copy", "transpose", "concat", "stack"] = "copy"


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json and the template that reads it."""

    template: str
    """Name in `registry.MODELS`."""
    config_from: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Takes the content of config.json, returns the values of the template's config. Raises ModelError where the
    checkpoint uses something the template does not have (an activation, a position type), naming it."""
    config_to: Callable[[Any], dict[str, Any]]
    """Takes the template's config, returns config.json with `model_type` and `architectures`. Raises ModelError where
    this layout can't hold the config; the next family of the same template is tried then."""
    rules: Callable[[Any], Sequence[Rule]]
    """Takes the template's config, returns the rules for all its weights; the first that fits a name is used."""
    ignored: tuple[str, ...] = ()
    """Regular expressions, looked for anywhere in their names, for what carries no weight (position buffers, relative
    position indices) or is left out on purpose; all else that is not used is named in a warning."""
    base_prefix: str = ""
    """Prefix that their names have or lack depending on the class that saved them ("bert.", "transformer.")."""
    keep_float32: tuple[str, ...] = ()
    """Ends of our names that stay in float32 whatever number format the weights are loaded in."""
    heads: tuple[str, ...] = ()
    """Prefixes of our names that may be started anew, with a warning, where they are missing or of another size."""
