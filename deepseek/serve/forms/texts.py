"""Texts as instances: for classification and regression, and with hidden tokens for masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deepseek.data.masking import MaskTokens
from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.data.tokenize import Tokenize, stored_tokenizer
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import RequestError, TokenizerError
from deepseek.serve.forms.checks import refused, text_of
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes
from deepseek.serve.forms.stages import Road, inputs_of

_DEFAULT_MASK = "[MASK]"


class TextTaker:
    """A text through the pipeline's stages."""

    takes: Takes = "text"

    def __init__(self, stages: Sequence[Stage | StageGroup], limits: FormLimits, longest: int | None) -> None:
        self._road, self._limits, self._longest = Road(stages), limits, longest
        self.schema: Schema = {"type": "string", "minLength": 1, "maxLength": limits.text_characters}

    def take(self, body: Any) -> Taken:
        """Return `input_ids` and `attention_mask`. Raises RequestError for no text, or one too long for the model."""
        text = text_of(body, "text", self._limits.text_characters)
        batch = self._road.batch([{"text": text}], "text")
        if "input_ids" in batch:
            check_tokens(batch["input_ids"].shape[1], self._longest)
        return Taken(batch, {})

    def example(self) -> Any:
        """Return a short text."""
        return "This is a short text."

    def probes(self) -> Sequence[Any]:
        """Return texts of two lengths."""
        return [self.example(), "This"]


class HiddenTextTaker:
    """A text in which some tokens are hidden: the mask token stands in their place."""

    takes: Takes = "text"

    def __init__(
        self, stage: Tokenize, masks: MaskTokens | None, tokenizer: Tokenizer | None, limits: FormLimits, longest: int
    ) -> None:
        self._stage, self._limits = stage, limits
        self.tokenizer = tokenizer if tokenizer is not None else stored_tokenizer(stage.tokenizer)
        self.mask = masks.mask_token if masks is not None else _mask_token(self.tokenizer)
        self._mask_id = self.tokenizer.special_tokens.get(self.mask, -1)
        self._longest = min(longest, stage.max_length or longest)
        self.schema: Schema = {
            "type": "string",
            "minLength": 1,
            "maxLength": limits.text_characters,
            "description": f"{self.mask} where a token is hidden",
        }

    def take(self, body: Any) -> Taken:
        """Return the tokens, and where some are hidden. Raises RequestError for a text in which none is."""
        text = text_of(body, "text", self._limits.text_characters)
        stage, tokenizer = self._stage, self.tokenizer
        if self._mask_id < 0 or self.mask not in text:
            fix = f"write {self.mask} in the place of a word"
            raise RequestError("'text' hides nothing", field="text", wanted=f"{self.mask} in it", fix=fix)
        try:
            ids = tokenizer.encode(text, allowed_special=[self.mask], add_special_tokens=stage.add_special_tokens) + (
                [tokenizer.eos_id] if stage.add_eos else []
            )
        except TokenizerError as error:
            raise refused(error, "text") from error
        check_tokens(len(ids), self._longest)
        hidden = [place for place, one in enumerate(ids) if one == self._mask_id]
        batch = inputs_of([{"input_ids": torch.tensor(ids, dtype=torch.int64)}])
        return Taken(batch, {"hidden": hidden, "ids": ids})

    def example(self) -> Any:
        """Return a short text with one hidden token."""
        return f"The sky is {self.mask}."

    def probes(self) -> Sequence[Any]:
        """Return texts of two lengths."""
        return [self.example(), self.mask]


def check_tokens(found: int, longest: int | None, field: str = "text") -> None:
    """Raise RequestError for no token, or more than the model reads."""
    if not found:
        raise RequestError(f"'{field}' has no token", field=field, wanted="at least one")
    if longest is not None and found > longest:
        wanted = f"at most {longest}, which the model reads"
        raise RequestError(f"'{field}' has too many tokens", field=field, found=found, wanted=wanted)


def _mask_token(tokenizer: Tokenizer) -> str:
    special = tokenizer.special_tokens
    return next((name for name in special if "mask" in name.lower()), _DEFAULT_MASK)
