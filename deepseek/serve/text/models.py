"""What the server needs of a model, and the adapter that gives it for a bundle.

`TextModel` is the whole interface between the server and the rest of the framework; tests put fakes behind it.
Not here: scheduling (see `engine`), finding bundles (see `folder`), how a step is computed (see `runner`).
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from deepseek.errors import BundleError, RequestError
from deepseek.serve.text.engine import TextStream, TokenSource

if TYPE_CHECKING:
    import torch

    from deepseek.bundle import Bundle
    from deepseek.data.tokenizer import Tokenizer
    from deepseek.serve.text.constraint import Grammars
    from deepseek.serve.text.limits import EngineLimits
    from deepseek.serve.text.plan import Constraint, Runner


_LOG = logging.getLogger("deepseek.serve")

LONGEST = 1 << 15
"""Most tokens of prompt and answer for a model that sets no bound itself (LSTM, Transformer-XL)."""


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

    @property
    def fingerprint(self) -> str:
        """What differs for every other model: a SHA-256 in hexadecimal digits."""
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

    def token_text(self, index: int) -> str:
        """Return a token as text, special tokens by name; bytes that are no whole character become U+FFFD."""
        ...

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes a token stands for, none for a special token."""
        ...

    def constraint(self, schema: Mapping[str, Any] | None) -> Constraint:
        """Return the rule that an answer is JSON of `schema`, None: any JSON object.

        Raises RequestError for a schema that can't be followed, and (501) where the library is not installed.
        """
        ...

    def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """Return a vector of unit length for each text: the mean of the last hidden states. Raises RequestError."""
        ...

    def verify(self) -> None:
        """Answer the golden samples. Raises BundleError when an answer differs from the recorded one."""
        ...


class BundleModel:
    """A language-model bundle as the server needs it."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError for a bundle without a tokenizer, of another task, or of a model that can't go on."""
        from deepseek.serve.text.past_runner import can_read

        if bundle.tokenizer is None or bundle.config.task != "language_modeling":
            raise BundleError(
                f"{bundle.path} can't be served as a language model",
                found=f"task '{bundle.config.task}', {'no' if bundle.tokenizer is None else 'a'} tokenizer",
                wanted="task 'language_modeling' with a tokenizer",
                fix="save it with ds.save(model, path, tokenizer=tokenizer)",
            )
        if not can_read(bundle.model):
            raise BundleError(
                f"{bundle.path} can't be served as a language model",
                found=type(bundle.model).__name__,
                wanted="a model that goes on with a text: with `new_cache`, or with a memory",
            )
        self._bundle = bundle
        self._model = cast(Any, bundle.model)  # one of our templates: it has `config`
        self._device: torch.device = next(iter(bundle.model.state_dict().values())).device
        self._tokenizer: Tokenizer = bundle.tokenizer
        self._golden: BundleError | Literal["unknown", "right"] = "unknown"

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> BundleModel:
        """Load a bundle. Raises BundleError."""
        from deepseek.bundle import load

        return cls(load(path, device=device))

    @property
    def network(self) -> torch.nn.Module:
        """The model itself."""
        network: torch.nn.Module = self._model
        return network

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into the model's tokens."""
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def move(self, device: torch.device | str) -> None:
        """Move the model to another device, whose memory is then its own. Not for one that a runner was made of."""
        import torch

        self._model.to(device)
        self._device = torch.device(device)
        torch.cuda.empty_cache()

    @property
    def max_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return int(getattr(self._model.config, "max_length", LONGEST))

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the bundle's files and their names, in hexadecimal digits."""
        path = self._bundle.path
        whole = hashlib.sha256()
        for name in self._bundle.files:
            with open(path if path.is_file() else path / name, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            whole.update(f"{digest}  {'' if path.is_file() else name}\n".encode())
        return whole.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text to continue; for an empty one, the token that stands between documents."""
        return self._tokenizer.encode(text) or [self._tokenizer.eos_id]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next answer begins."""
        return self._tokenizer.encode_chat(messages, add_generation_prompt=True)

    def stop_ids(self, *, chat: bool) -> frozenset[int]:
        """Return the tokens that end an answer: the end of the document, in a chat also every mark of a turn."""
        return frozenset(self._tokenizer.special_tokens.values()) if chat else frozenset({self._tokenizer.eos_id})

    def token_text(self, index: int) -> str:
        """Return a token as text, special tokens by name; bytes that are no whole character become U+FFFD."""
        return self._tokenizer.decode([index], skip_special_tokens=False)

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes a token stands for, none for a special token."""
        return self._tokenizer.token_bytes(index)

    def constraint(self, schema: Mapping[str, Any] | None) -> Constraint:
        """Return the rule that an answer is JSON of `schema`, None: any JSON object.

        Raises RequestError for a schema that can't be followed, and (501) where llguidance is not installed.
        """
        return self._grammars.json(schema)

    @functools.cached_property
    def _grammars(self) -> Grammars:
        from deepseek.serve.text.constraint import Grammars

        return Grammars(self._tokenizer)

    def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """Return a vector of unit length for each text: the mean of the last hidden states.

        Raises RequestError for an empty text and for one that is longer than the model's context.
        """
        import torch

        for prompt_ids in prompts:
            if not 0 < len(prompt_ids) <= self.max_length:
                raise ContextLengthError(
                    "a text to embed has the wrong length",
                    field="input",
                    found=f"{len(prompt_ids)} tokens",
                    wanted=f"1 to {self.max_length}",
                )
        found = []
        with torch.inference_mode():
            for prompt_ids in prompts:
                input_ids = torch.tensor([prompt_ids], dtype=torch.int64, device=self._device)
                mean = self._model.forward_features(input_ids)[0].float().mean(0)
                found.append(torch.nn.functional.normalize(mean, dim=0).tolist())
        return found

    def text_stream(self) -> TextStream:
        """Return a fresh decoder for one answer."""
        from deepseek.data.tokenizer import TokenStream

        return TokenStream(self._tokenizer)

    def runner(self, limits: EngineLimits) -> Runner:
        """Return what computes this model's steps, warmed up.

        The weights take the form that `limits.weights` asks for, for good; the golden samples are answered before that.
        Raises ConfigError when keys and values don't fit the memory.
        """
        from deepseek.serve.text.paged_cache import has_pages
        from deepseek.serve.text.past_runner import PastRunner
        from deepseek.serve.text.runner import PagedRunner
        from deepseek.serve.text.weights import prepare_weights

        self._check_golden()
        self._model = prepare_weights(self._model, limits.weights)
        if not has_pages(self._model):
            return PastRunner(self._model, limits, self.vocab_size, self.max_length, self._device)
        runner = PagedRunner(self._model, limits, self.vocab_size, self._device)
        runner.warm_up()
        return runner

    def verify(self) -> None:
        """Answer the golden samples with the weights as they were saved; what was found is kept.

        The vocabulary is read for constraints too, which takes a second for a large one.
        Raises BundleError when an answer differs from the recorded one.
        """
        if self._bundle.golden is None:
            _LOG.warning("%s has no golden samples: its answers can't be checked", self._bundle.path)
        self._check_golden()
        if isinstance(self._golden, BundleError):
            raise self._golden
        try:
            self.constraint(None)
        except RequestError as error:
            _LOG.info("%s: %s", self._bundle.path, error.problem)

    def _check_golden(self) -> None:
        """Note whether the golden samples are answered right; before the weights are changed."""
        if self._golden == "unknown":
            try:
                self._bundle.verify()
                self._golden = "right"
            except BundleError as error:
                self._golden = error
