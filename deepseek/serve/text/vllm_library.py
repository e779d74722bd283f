"""The names of vLLM that we use, and our settings in its words. vLLM is optional and comes with no extra of ours.

Not here: the engine (`vllm_engine`), when it is used (`engine_choice`).
Source: vLLM 0.33, `AsyncLLM`, `SamplingParams`, `EngineArgs` (https://docs.vllm.ai); Kwon et al. 2023,
arXiv:2309.06180.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from deepseek.errors import ConfigError
from deepseek.lazy import load, require
from deepseek.serve.text.constraint import JsonConstraint
from deepseek.serve.text.events import Job
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.plan import Sampled, TokenLogprob

MOST_LOGPROBS = 20
"""Likeliest tokens that a request may ask for beside each token (OpenAI's bound)."""

_SHARE = 0.9  # of the free memory: what vLLM's own CUDA context and graphs take is not counted in its share


class Vllm(NamedTuple):
    """What we use of vLLM."""

    client: Any
    """`AsyncLLMEngine`."""
    args: Any
    """`AsyncEngineArgs`."""
    registry: Any
    """`ModelRegistry`."""
    sampling: Any
    """`SamplingParams`."""
    structured: Any
    """`StructuredOutputsParams`."""
    structured_config: Any
    """`StructuredOutputsConfig`."""
    output_kind: Any
    """`RequestOutputKind`."""
    tokens_input: Any
    client_error: type[Exception]
    """`VLLMClientError`: what is the request's fault."""


def load_vllm() -> Vllm:
    """Import vLLM. Raises MissingExtraError without it, ConfigError for one whose interface is another."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell another host what it runs on
    package = require("vllm", None)
    try:
        return Vllm(
            package.AsyncLLMEngine,
            package.AsyncEngineArgs,
            package.ModelRegistry,
            package.SamplingParams,
            load("vllm.sampling_params:StructuredOutputsParams"),
            load("vllm.config:StructuredOutputsConfig"),
            load("vllm.sampling_params:RequestOutputKind"),
            load("vllm.inputs:tokens_input"),
            load("vllm.exceptions:VLLMClientError"),
        )
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "the vLLM that is installed has another interface",
            found=f"version {getattr(package, '__version__', 'unknown')}: {error}",
            wanted="0.33 or one alike",
            fix="pip install 'vllm>=0.33', or --engine own",
        ) from error


def engine_values(
    vllm: Vllm, folder: Path, dtype: str, max_length: int, limits: EngineLimits, device: int | None
) -> dict[str, Any]:
    """Return the arguments of `AsyncEngineArgs` for a model in `folder` on CUDA device number `device`.

    Limits that nobody has set are left to vLLM where they are a matter of speed: ours are made for a CPU.
    """
    values: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": max_length,
        "max_num_seqs": limits.max_active,
        "enable_prefix_caching": limits.prefix_cache,
        "gpu_memory_utilization": _free_share(device),
        "max_logprobs": MOST_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        # the library that our own engine uses, and as there no white space that an answer could go on with for ever
        "structured_outputs_config": vllm.structured_config(backend="guidance", disable_any_whitespace=True),
        "disable_log_stats": True,
    }
    if limits.kv_bytes is not None:
        values["kv_cache_memory_bytes"] = limits.kv_bytes
    for name, theirs in (("block_size", "block_size"), ("max_batch_tokens", "max_num_batched_tokens")):
        if name in limits.model_fields_set:
            values[theirs] = getattr(limits, name)
    if device:
        values["device_ids"] = [device]
    return values


def _free_share(device: int | None) -> float:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return round(_SHARE * free / total, 3)


def sampling_values(vllm: Vllm, job: Job) -> dict[str, Any]:
    """Return the arguments of `SamplingParams` for a job.

    Text and stop strings are ours: then an answer is cut at the same place by either engine. So are the tokens that end
    it; only a grammar needs vLLM's own end token as well.
    """
    config = job.sampling
    values: dict[str, Any] = {
        "max_tokens": config.max_new_tokens,
        "temperature": 0.0 if config.greedy else config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "repetition_penalty": config.repetition_penalty,
        "seed": config.seed,
        "logprobs": job.logprobs,
        "stop_token_ids": sorted(job.stop_ids),
        "ignore_eos": job.constraint is None,
        "detokenize": False,
        "output_kind": vllm.output_kind.DELTA,
    }
    if job.constraint is not None:
        values["structured_outputs"] = vllm.structured(json=cast(JsonConstraint, job.constraint).schema)
    return values


def sampled(number: int, completion: Any, job: Job) -> Iterator[Sampled]:
    """Yield the new tokens of a `CompletionOutput`; an end token that is vLLM's own ends the text and is not told."""
    tokens, logprobs, top = list(completion.token_ids), completion.logprobs, job.logprobs
    ended = completion.finish_reason == "stop" and (not tokens or tokens[-1] not in job.stop_ids)
    for place, token in enumerate(tokens[:-1] if ended else tokens):
        told = None if top is None or logprobs is None else _logprob(token, logprobs[place], top)
        yield Sampled(number, token, told, None)
    if ended:
        yield Sampled(number, None, None, None, True)


def _logprob(token: int, told: Any, top: int) -> TokenLogprob:
    """Return ours for one position's `{token: Logprob}`, in which the chosen token stands whatever its rank."""
    likeliest = sorted((one.rank, other, one.logprob) for other, one in told.items() if one.rank <= top)
    return TokenLogprob(token, told[token].logprob, tuple((other, value) for _, other, value in likeliest[:top]))
