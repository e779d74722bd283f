"""Answers that are JSON of a given schema: at each token, those alone are allowed that a valid text can go on with.

The grammar is the library llguidance's, an optional one; here is the bridge from our tokenizers, and the state of one
answer. White space between the parts of an answer is not allowed, so that a model can't go on with it for ever.
Formats: JSON Schema (https://json-schema.org), what llguidance supports of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import MissingExtraError, RequestError, TokenizerError
from deepseek.lazy import require

if TYPE_CHECKING:
    from deepseek.data.tokenizer import Tokenizer

_FIELD = "response_format"


class GrammarState:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, bits: NDArray[np.int32]) -> RequestError | None:
        """Set the bits of the tokens that may come next, lowest bit first; return an error where there are none.

        None may come where the schema has no text at all, and where it becomes too large for the library's limits.
        """
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            bits[:] = 0
            return _refused(self._matcher.get_error())
        return None

    def accept(self, token: int) -> bool:
        """Take the chosen token; return whether the answer is complete and nothing can follow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


class JsonConstraint:
    """A checked grammar, to be started for each answer; `schema` is the JSON text that it was made of."""

    def __init__(self, matcher: Any, schema: str) -> None:
        self._matcher = matcher
        self.schema = schema

    def start(self) -> GrammarState:
        """Return the state of a new answer."""
        return GrammarState(self._matcher.deep_copy())


class Grammars:
    """Makes constraints for one tokenizer. Reading the vocabulary costs time, so it is done once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises RequestError (501) without llguidance, and for a tokenizer that it can't read."""
        try:
            self._library = require("llguidance", "serve")
            vocabulary = self._library.TokenizerWrapper(_Vocabulary(tokenizer))
            self._limits = self._library.LLParserLimits(verbose_errors=False)
            self._tokenizer = self._library.LLTokenizer(vocabulary, eos_token=_end_ids(tokenizer))
        except (MissingExtraError, TokenizerError, ValueError) as error:
            fix = error.fix if isinstance(error, MissingExtraError) else None
            raise RequestError(
                "this model's answers can't be bound to a JSON schema here", field=_FIELD, status=501, fix=fix
            ) from error

    def json(self, schema: Mapping[str, Any] | None) -> JsonConstraint:
        """Return the constraint to JSON of `schema`, or to any JSON object. Raises RequestError for a wrong schema."""
        matcher_class = self._library.LLMatcher
        try:
            text = json.dumps({"type": "object"} if schema is None else dict(schema), allow_nan=False)
            grammar = matcher_class.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except (ValueError, TypeError, RecursionError) as error:
            raise _refused(str(error)) from error
        matcher = matcher_class(self._tokenizer, grammar, log_level=0, limits=self._limits)
        bits = np.zeros(-(-self._tokenizer.vocab_size // 32), dtype=np.int32)
        refused = GrammarState(matcher.deep_copy()).fill(bits)
        if refused is not None:
            raise refused
        return JsonConstraint(matcher, text)


class _Vocabulary:
    """A tokenizer as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        names = {index: name for name, index in tokenizer.special_tokens.items()}
        self.tokens = [
            names[index].encode() if index in names else tokenizer.token_bytes(index)
            for index in range(tokenizer.vocab_size)
        ]
        self.special_token_ids = sorted(names)
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _end_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that may end an answer, that of a document first."""
    return list(dict.fromkeys([tokenizer.eos_id, tokenizer.end_id]))


def _refused(reason: str) -> RequestError:
    return RequestError(
        "the JSON schema can't be followed",
        field=_FIELD,
        found=reason.strip().splitlines()[0][:200] if reason.strip() else None,
        wanted="a JSON Schema object of supported keywords",
        fix="simplify the schema, or ask for a JSON object without one",
    )
