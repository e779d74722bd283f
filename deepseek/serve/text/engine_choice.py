"""Which engine answers for a language model: our own, or vLLM where it is installed and runs the model.

Not here: the engines (`engine`, `vllm_engine`).
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from deepseek.errors import BundleError, ConfigError, DeepSeekError, MissingExtraError, ModelError
from deepseek.serve.text.engine import Engine, TokenSource
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.models import BundleModel
from deepseek.serve.text.vllm_engine import VllmEngine
from deepseek.serve.text.vllm_library import engine_values, load_vllm

_LOG = logging.getLogger("deepseek.serve")
_OWN = "--engine own"


def make_engine(model: TokenSource, limits: EngineLimits) -> Engine | VllmEngine:
    """Return the engine that `limits.engine` asks for.

    "auto" is our own without a word where vLLM is not there or not for this model, and with a warning where vLLM fails
    as it starts. For "vllm" what is in the way is raised: MissingExtraError, ConfigError, ModelError, BundleError.
    """
    if limits.engine == "own":
        return Engine(model, limits)
    refusal = _in_the_way(model, limits)
    if refusal is None and isinstance(model, BundleModel):
        try:
            return _started(model, limits)
        except DeepSeekError as error:
            refusal = error
            if limits.engine == "auto":
                _LOG.warning("our own engine answers in place of vLLM: %s", error)
    if limits.engine == "vllm" and refusal is not None:
        raise refusal
    return Engine(model, limits)


def _in_the_way(model: TokenSource, limits: EngineLimits) -> DeepSeekError | None:
    """Return why vLLM is not for this model on this machine, None where it may be."""
    from deepseek.models.pretrained.front import public_config

    if not isinstance(model, BundleModel):
        return ConfigError("vLLM opens bundles alone", found=type(model).__name__, fix=_OWN)
    if model.device.type != "cuda":
        return ConfigError(
            "vLLM is used on CUDA devices alone", found=f"the model on {model.device}", fix=f"--device cuda, or {_OWN}"
        )
    if limits.weights in ("int8", "int4"):
        return ConfigError(
            "weights of few bits are our own engine's",
            found=f"weights {limits.weights} for vLLM",
            wanted="auto, fp32 or bf16",
            fix=f"--weights bf16, or {_OWN}",
        )
    if importlib.util.find_spec("vllm") is None:
        return MissingExtraError("vllm", None)
    try:
        public_config(model.network)
    except ModelError as error:
        return error
    return None


def _started(model: BundleModel, limits: EngineLimits) -> VllmEngine:
    """Return vLLM with the model; ours goes to the CPU's memory, so that there is one on the device.

    Raises what `load_vllm` and `public_folder` raise, and BundleError where vLLM does not open it.
    """
    from deepseek.models.pretrained.front import public_config
    from deepseek.serve.text.vllm_folder import public_folder

    vllm = load_vllm()
    kinds: Any = public_config(model.network)["architectures"]
    if not set(kinds) & set(vllm.registry.get_supported_archs()):
        raise ConfigError("the vLLM that is installed does not know this model", found=", ".join(kinds), fix=_OWN)
    folder, device, dtype = public_folder(model), model.device, _dtype(model, limits)
    model.move("cpu")
    try:
        values = engine_values(vllm, folder, dtype, model.max_length, limits, device.index)
        client = vllm.client.from_engine_args(vllm.args(**values))
    except Exception as error:
        model.move(device)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            "vLLM can't run this model here", found=reason, fix=f"see vLLM's own log, or {_OWN}"
        ) from error
    return VllmEngine(model, vllm, client, limits)


def _dtype(model: BundleModel, limits: EngineLimits) -> str:
    if limits.weights == "auto":
        return str(next(model.network.parameters()).dtype).removeprefix("torch.")
    return "float32" if limits.weights == "fp32" else "bfloat16"
