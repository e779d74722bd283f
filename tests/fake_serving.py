"""A language model without a network: bytes are tokens, and what it says is a pure function of what it was asked.

For tests of the server. It can be slow, wait to be let on, or fail at a chosen token.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from deepseek.errors import BundleError
from deepseek.models.generation import SamplingConfig

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
    ) -> None:
        self._script = script.encode() if isinstance(script, str) else script
        self._max_length = max_length
        self._step_seconds = step_seconds
        self._end = end
        self._golden = golden
        self.may_verify = threading.Event()
        self.may_verify.set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.fail_at: int | None = None
        self.failure: BaseException = RuntimeError("secret detail of the crash")
        self.open = 0
        self.steps: list[int] = []
        """First prompt token of every step, in the order they were done."""

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def vocab_size(self) -> int:
        return 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode()) or [EOS]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return list("".join(f"{message['role']}: {message['content']}\n" for message in messages).encode())

    def stop_ids(self, *, chat: bool) -> frozenset[int]:
        return frozenset({EOS})

    def text_stream(self) -> ByteStream:
        return ByteStream()

    def generate(self, prompt_ids: list[int], sampling: SamplingConfig) -> Iterator[int]:
        said = (
            self._script
            or bytes(reversed([token for token in prompt_ids if token < 256])) + str(len(prompt_ids)).encode()
        )
        shift = 0 if sampling.seed is None else sampling.seed % len(said)
        tokens = itertools.chain(said, [EOS]) if self._end else itertools.cycle(said[shift:] + said[:shift])
        self.open += 1
        try:
            for count, token in enumerate(itertools.islice(tokens, sampling.max_new_tokens)):
                self.may_step.wait(30)
                time.sleep(self._step_seconds)
                if self.fail_at == count:
                    raise self.failure
                self.steps.append(prompt_ids[0])
                yield token
        finally:
            self.open -= 1

    def verify(self) -> None:
        self.may_verify.wait(30)
        if not self._golden:
            raise BundleError("the golden samples were answered differently")
