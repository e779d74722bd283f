"""The rotary positions in a config.json, shared by the families that have them.

Old files keep `rope_theta` and `rope_scaling` apart, new ones hold both in `rope_parameters`; what we write is the old
form, which all versions of transformers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepseek.errors import ModelError

_LLAMA3 = {"low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"}
_YARN = {name: name for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")}
_FIELDS: Mapping[str, Mapping[str, str]] = {"linear": {}, "llama3": _LLAMA3, "yarn": _YARN}


def rotary_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_base` and `rope_scaling` of a template from the content of config.json.

    Raises ModelError for a kind of scaling that we do not have, and for heads that are turned in part.
    """
    found = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    share = found.get("partial_rotary_factor") or theirs.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise ModelError("heads that are turned in part can't be read", found=f"partial_rotary_factor {share}")
    base = {"rope_base": float(found.get("rope_theta") or theirs.get("rope_theta") or 10000.0)}
    if kind == "default":
        return base
    if kind not in _FIELDS:
        raise ModelError(
            "rotary positions of this kind can't be read", found=repr(kind), wanted=", ".join(["default", *_FIELDS])
        )
    if found.get("truncate") is False:
        raise ModelError("yarn with broken bounds can't be read", found="truncate false", wanted=True)
    scaling: dict[str, Any] = {"type": kind}
    if kind != "linear":
        scaling["original_length"] = found.get("original_max_position_embeddings") or theirs["max_position_embeddings"]
    factor = found.get("factor") or theirs["max_position_embeddings"] / scaling["original_length"]
    scaling["factor"] = float(factor)
    for their_name, our_name in _FIELDS[kind].items():
        if found.get(their_name):
            scaling[our_name] = float(found[their_name])
    return {**base, "rope_scaling": scaling}


def rotary_to(config: Any) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of config.json from a template's config."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_base, "rope_scaling": None}
    found: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.original_length is not None:
        found["original_max_position_embeddings"] = scaling.original_length
    for their_name, our_name in _FIELDS[scaling.type].items():
        if getattr(scaling, our_name) is not None:
            found[their_name] = getattr(scaling, our_name)
    return {"rope_theta": config.rope_base, "rope_scaling": found}
