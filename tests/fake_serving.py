"""A language model without a network: bytes are tokens, and what it says is a pure function of what it was asked.

For tests of the server. It can be slow, wait to be let on, or fail at a chosen token. Its pages are real in so far as
every token that a step relies on must stand in them: a scheduler that mixes pages up is found out at once.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepseek.errors import BundleError, RequestError
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.plan import Constraint, Sampled, Sampling, SequenceRun, StepPlan, TokenLogprob

EOS = 256


class ByteStream:
    """Bytes to text, whole characters only."""

    def __init__(self) -> None:
        self._bytes = b""

    def push(self, token_id: int, /) -> str:
        self._bytes += bytes([token_id])
        try:
            text = self._bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            text = self._bytes.decode("utf-8", "replace")
        self._bytes = b""
        return text

    def finish(self) -> str:
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text


class FakeConstraint:
    """Lets the model say this JSON text only."""

    def __init__(self, schema: Mapping[str, object] | None) -> None:
        if schema is not None and not isinstance(schema.get("type", "object"), str):
            raise RequestError("the schema is not one", field="response_format", wanted="a JSON schema")
        said = {name: 1 for name in (schema or {}).get("properties", {})}  # type: ignore[attr-defined]
        self.text = json.dumps(said or {"answer": 1})


class FakePages:
    """What a model's pages hold: at each position something made of all tokens up to it, here a hash of them."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._size = block_size
        self._hashes = [[-1] * block_size for _ in range(num_blocks)]

    def write(self, runs: Sequence[SequenceRun]) -> None:
        """Compute the tokens of a step from what stood in the pages before it."""
        before = [self.read(run.blocks, run.start)[-1] if run.start else 0 for run in runs]
        for value, run in zip(before, runs, strict=True):
            for position, token in enumerate(run.tokens, run.start):
                value = hash((value, token))
                self._hashes[run.blocks[position // self._size]][position % self._size] = value

    def read(self, blocks: Sequence[int], end: int) -> list[int]:
        """Return what stands at the first `end` positions."""
        hashes: list[int] = []
        for block in blocks:
            hashes += self._hashes[block]
        return hashes[:end]


class FakeState(NamedTuple):
    """What the runner remembers of a sequence: its prompt's length, and what its pages must hold so far."""

    prompt: int
    hashes: list[int]


class FakeRunner:
    """Computes steps of a FakeModel; refuses to when the pages don't hold the text they are said to hold."""

    def __init__(self, model: FakeModel, limits: EngineLimits, num_blocks: int) -> None:
        self.block_size = limits.block_size
        self.num_blocks = num_blocks
        self._model = model
        self._pages = FakePages(num_blocks, limits.block_size)
        self._states: dict[int, FakeState] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        self._model.may_step.wait(30)
        time.sleep(self._model.step_seconds)
        if self._model.fail_step is not None:
            failure, self._model.fail_step = self._model.fail_step, None
            raise failure
        if not all(run.tokens for run in plan.runs):
            raise AssertionError("a sequence without tokens in the plan")
        self._pages.write(plan.runs)
        return [self._sample(run, run.sampling) for run in plan.runs if run.sampling is not None]

    def release(self, sequence: int) -> None:
        if self._states.pop(sequence, None) is not None:
            self._model.open -= 1

    def _sample(self, run: SequenceRun, sampling: Sampling) -> Sampled:
        prompt_length = self._check(run)
        count = len(run.history) - prompt_length
        if self._model.fail_at == count:
            if not isinstance(self._model.failure, Exception):
                raise self._model.failure
            return Sampled(run.sequence, None, None, self._model.failure)
        self._model.steps.append(run.history[0])
        token = self._model.says(run.history[:prompt_length], count, sampling)
        constraint = sampling.constraint
        finished = isinstance(constraint, FakeConstraint) and count + 1 == len(constraint.text)
        return Sampled(run.sequence, token, _logprob(token, sampling.logprobs), None, finished or token is None)

    def _check(self, run: SequenceRun) -> int:
        """Hold the pages against the history; return the length of the prompt."""
        if run.sequence not in self._states:
            self._states[run.sequence] = FakeState(len(run.history), [])
            self._model.open += 1
        state = self._states[run.sequence]
        for token in run.history[len(state.hashes) :]:
            state.hashes.append(hash((state.hashes[-1] if state.hashes else 0, token)))
        if self._pages.read(run.blocks, len(run.history)) != state.hashes:
            raise AssertionError(f"the pages {run.blocks} don't hold {run.history}")
        return state.prompt


class FakeModel:
    """Says `script` again and again; where there is none, the prompt reversed, then its length, then that again."""

    def __init__(
        self,
        script: str | bytes | None = None,
        *,
        max_length: int = 4096,
        step_seconds: float = 0.0,
        end: bool = False,
        golden: bool = True,
        num_blocks: int | None = None,
    ) -> None:
        self._script = script.encode() if isinstance(script, str) else script
        self._max_length = max_length
        self.step_seconds = step_seconds
        self._end = end
        self._golden = golden
        self._num_blocks = num_blocks
        self.may_verify = threading.Event()
        self.may_verify.set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.fail_at: int | None = None
        """Number of the token, in every answer, in place of which `failure` comes."""
        self.failure: BaseException = RuntimeError("secret detail of the crash")
        self.fail_step: BaseException | None = None
        """Raised once, by the next step as a whole."""
        self.open = 0
        """Answers that have begun and were not released."""
        self.steps: list[int] = []
        """First prompt token of every token that was generated, in their order."""

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def vocab_size(self) -> int:
        return 257

    @property
    def fingerprint(self) -> str:
        return f"fake-{self._script!r}-{self._max_length}"

    def encode(self, text: str) -> list[int]:
        return list(text.encode()) or [EOS]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return list("".join(f"{message['role']}: {message['content']}\n" for message in messages).encode())

    def stop_ids(self, *, chat: bool) -> frozenset[int]:
        return frozenset({EOS})

    def text_stream(self) -> ByteStream:
        return ByteStream()

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == EOS else bytes([token_id])

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def constraint(self, schema: Mapping[str, object] | None) -> Constraint:
        return FakeConstraint(schema)

    def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """Return a unit vector of four numbers for each prompt, the same for the same tokens."""
        return [_unit([1.0 + sum(ids[start::4]) for start in range(4)]) for ids in prompts]

    def runner(self, limits: EngineLimits) -> FakeRunner:
        blocks = -(-self._max_length // limits.block_size) * limits.max_active
        return FakeRunner(self, limits, self._num_blocks or blocks)

    def says(self, prompt_ids: Sequence[int], count: int, sampling: Sampling) -> int | None:
        """Return token number `count` of the answer to a prompt; None: it has no more to say."""
        if isinstance(sampling.constraint, FakeConstraint):
            return ord(sampling.constraint.text[count])
        said = (
            self._script
            or bytes(reversed([token for token in prompt_ids if token < 256])) + str(len(prompt_ids)).encode()
        )
        if self._end:
            return said[count] if count < len(said) else EOS
        return said[(count + (sampling.config.seed or 0)) % len(said)]

    def verify(self) -> None:
        self.may_verify.wait(30)
        if not self._golden:
            raise BundleError("the golden samples were answered differently")


def _logprob(token: int | None, top: int | None) -> TokenLogprob | None:
    """Return made-up probabilities: the chosen token's is a half, the next token's a quarter and so on."""
    if top is None or token is None:
        return None
    likeliest = [((token + rank) % 257, -math.log(2) * (rank + 1)) for rank in range(top)]
    return TokenLogprob(token, -math.log(2), tuple(likeliest))


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector]
