"""What the server needs of a model, and the adapter that gives it for a bundle.

`TextModel` is the whole interface between the server and the rest of the framework; tests put fakes behind it.
Not here: scheduling (see `engine`), finding bundles (see `folder`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from deepseek.errors import BundleError, RequestError
from deepseek.serve.text.engine import TextStream, TokenSource

if TYPE_CHECKING:
    from torch import Tensor

    from deepseek.bundle import Bundle
    from deepseek.data.tokenizer import Tokenizer
    from deepseek.models.generation import LogitsProcessor, SamplingConfig


_LOG = logging.getLogger("deepseek.serve")


class ContextLengthError(RequestError):
    """The prompt and the answer don't fit the model together."""


class TextModel(TokenSource, Protocol):
    """A language model with its tokenizer."""

    @property
    def max_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text to continue, at least one."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next answer begins."""
        ...

    def stop_ids(self, *, chat: bool) -> frozenset[int]:
        """Return the tokens that end an answer."""
        ...

    def verify(self) -> None:
        """Answer the golden samples. Raises BundleError when an answer differs from the recorded one."""
        ...


class BundleModel:
    """A language-model bundle as the server needs it."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError for a bundle without a tokenizer or of another task."""
        if bundle.tokenizer is None or bundle.config.task != "language_modeling":
            raise BundleError(
                f"{bundle.path} can't be served as a language model",
                found=f"task '{bundle.config.task}', {'no' if bundle.tokenizer is None else 'a'} tokenizer",
                wanted="task 'language_modeling' with a tokenizer",
                fix="save it with ds.save(model, path, tokenizer=tokenizer)",
            )
        self._bundle = bundle
        self._model = cast(Any, bundle.model)  # one of our templates: it has `config`
        self._device = next(iter(bundle.model.state_dict().values())).device
        self._tokenizer: Tokenizer = bundle.tokenizer
        unused = int(self._model.config.vocab_size) - self._tokenizer.vocab_size
        self._rules = [_only_below(self._tokenizer.vocab_size)] if unused > 0 else []

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> BundleModel:
        """Load a bundle. Raises BundleError."""
        from deepseek.bundle import load

        return cls(load(path, device=device))

    @property
    def max_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return int(self._model.config.max_length)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text to continue; for an empty one, the token that stands between documents."""
        return self._tokenizer.encode(text) or [self._tokenizer.eos_id]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next answer begins."""
        return self._tokenizer.encode_chat(messages, add_generation_prompt=True)

    def stop_ids(self, *, chat: bool) -> frozenset[int]:
        """Return the tokens that end an answer: the end of the document, in a chat also every mark of a turn."""
        return frozenset(self._tokenizer.special_tokens.values()) if chat else frozenset({self._tokenizer.eos_id})

    def generate(self, prompt_ids: list[int], sampling: SamplingConfig) -> Iterator[int]:
        """Yield new token ids one by one; closing the iterator frees its cache."""
        import torch

        from deepseek.models.generation import stream_ids

        input_ids = torch.tensor([prompt_ids], dtype=torch.int64, device=self._device)
        return (int(token) for token in stream_ids(self._model, input_ids, sampling, self._rules))

    def text_stream(self) -> TextStream:
        """Return a fresh decoder for one answer."""
        from deepseek.data.tokenizer import TokenStream

        return TokenStream(self._tokenizer)

    def verify(self) -> None:
        """Answer the golden samples, then generate one token, so that the first request finds everything in place.

        Raises BundleError when an answer differs from the recorded one.
        """
        from deepseek.models.generation import SamplingConfig

        if self._bundle.golden is None:
            _LOG.warning("%s has no golden samples: its answers can't be checked", self._bundle.path)
        self._bundle.verify()
        if self.max_length > 1:
            list(self.generate([self._tokenizer.eos_id], SamplingConfig(max_new_tokens=1, temperature=0)))


def _only_below(limit: int) -> LogitsProcessor:
    """Return a rule that keeps ids from `limit` on from being chosen: the model has them, the tokenizer does not."""

    def rule(ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, limit:] = float("-inf")
        return logits

    return rule
