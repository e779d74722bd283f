"""Stands in for vLLM: the names and the behaviour of version 0.33 that our engine relies on, without a GPU.

Answers come as asynchronous deltas of one or more tokens; what nobody reads on is aborted; parameters are checked as
vLLM checks them. What a model says is a function that a test gives.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

import pytest

Says = Callable[[Sequence[int], int, "SamplingParams"], int]
"""Takes a prompt, how many tokens were said, and the parameters; returns the next token."""


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    pass


class EngineDeadError(VLLMError):
    pass


class EngineGenerateError(VLLMError):
    pass


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsConfig:
    backend: str = "auto"
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if self.disable_any_whitespace and self.backend not in ("xgrammar", "guidance"):
            raise ValueError("disable_any_whitespace is only supported for xgrammar and guidance backends.")


@dataclass
class StructuredOutputsParams:
    json: str | dict[str, Any] | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        if (self.json is None) == (self.json_object is None):
            raise VLLMValidationError("one kind of structured outputs constraint")


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        if self.stop and not self.detokenize:
            raise VLLMValidationError("stop strings are only supported when detokenize is True.")
        if self.top_k < -1 or not 0 < self.top_p <= 1 or not 0 <= self.temperature <= 2 or self.repetition_penalty <= 0:
            raise VLLMValidationError("a sampling parameter is out of its range")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise VLLMValidationError("max_tokens must be at least 1")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass
class AsyncEngineArgs:
    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    generation_config: str = "auto"
    structured_outputs_config: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
    disable_log_stats: bool = False
    device_ids: list[int] | None = None


class ModelRegistry:
    @staticmethod
    def get_supported_archs() -> set[str]:
        return {"GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM"}


def tokens_input(prompt_ids: list[int], *, prompt: str | None = None, cache_salt: str | None = None) -> dict[str, Any]:
    given = {"type": "token", "prompt_token_ids": prompt_ids}
    return given if cache_salt is None else {**given, "cache_salt": cache_salt}


class AsyncLLMEngine:
    """What a test sets: what is said, how many tokens come in one delta, how many may be said until it is let on."""

    eos = 256
    opens: Callable[[AsyncEngineArgs], Says] = staticmethod(lambda args: lambda prompt, count, params: 97)

    def __init__(self, args: AsyncEngineArgs | None = None, says: Says | None = None) -> None:
        self.args = args
        self.says = says or type(self).opens(args or AsyncEngineArgs("none"))
        self.at_once = 1
        self.may_say: int | None = None
        self.failing: Exception | None = None
        self.errored = False
        self.shut_down = 0
        self.prompts: list[dict[str, Any]] = []
        self.params: list[SamplingParams] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self._handler: asyncio.Task[None] | None = None

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLMEngine:
        return cls(engine_args)

    async def generate(
        self, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        if self._handler is None:  # the real one reads its other process' answers in a task that never ends
            self._handler = asyncio.create_task(asyncio.sleep(3600))
        self.prompts.append(prompt)
        self.params.append(sampling_params)
        if sampling_params.structured_outputs is not None and "refused" in str(sampling_params.structured_outputs.json):
            raise VLLMValidationError("The JSON schema is nested too deeply")
        self.running.add(request_id)
        try:
            async for output in self._outputs(prompt["prompt_token_ids"], sampling_params, request_id):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            self.running.discard(request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        self.shut_down += 1

    async def _outputs(
        self, prompt: list[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        said, finish, stop = list[int](), None, None
        while finish is None:
            fresh = list[int]()
            while finish is None and len(fresh) < self.at_once:
                await self._turn(len(said))
                token = self.says(prompt, len(said), params)
                fresh.append(token)
                said.append(token)
                if token == self.eos and not params.ignore_eos:
                    finish = "stop"
                elif token in (params.stop_token_ids or ()):
                    finish, stop = "stop", token
                elif len(said) >= (params.max_tokens or 16):
                    finish = "length"
            told = None if params.logprobs is None else [logprobs(token, params.logprobs) for token in fresh]
            completion = CompletionOutput(0, "", fresh, None, told, finish, stop)
            yield RequestOutput(request_id, prompt, [completion], finish is not None, len(prompt) // 16 * 16)

    async def _turn(self, said: int) -> None:
        await asyncio.sleep(0)
        while self.may_say is not None and said >= self.may_say and self.failing is None:
            await asyncio.sleep(0.001)
        if self.failing is not None:
            raise self.failing


def logprobs(token: int, top: int) -> dict[int, Logprob]:
    """Return made-up ones as vLLM tells them: the chosen token of rank 3 first, then the likeliest by their ranks."""
    likeliest = {(token + 3 - rank) % 257: Logprob(-0.5 * rank, rank) for rank in range(1, top + 1)}
    return {token: Logprob(-1.5, 3), **likeliest}


def install(patch: pytest.MonkeyPatch) -> ModuleType:
    """Let `import vllm` find the stand-in."""
    modules = {
        "vllm": (AsyncLLMEngine, AsyncEngineArgs, ModelRegistry, SamplingParams),
        "vllm.sampling_params": (SamplingParams, StructuredOutputsParams, RequestOutputKind),
        "vllm.config": (StructuredOutputsConfig,),
        "vllm.inputs": (tokens_input,),
        "vllm.exceptions": (VLLMClientError,),
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for member in members:
            setattr(module, member.__name__, member)
        patch.setitem(sys.modules, name, module)
    package = sys.modules["vllm"]
    patch.setattr(package, "__version__", "0.33.0", raising=False)
    return package
