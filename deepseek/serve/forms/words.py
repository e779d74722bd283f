"""Answers made of tokens: what was said, what was written, and what stood where a token is hidden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from deepseek.data.tokenizer import Tokenizer
from deepseek.serve.forms.checks import NUMBER, json_number, object_schema
from deepseek.serve.forms.classes import DEFAULT_TOP
from deepseek.serve.forms.form import FormLimits, Gives, Schema

Spelling = Callable[[list[int]], str]
"""Tokens to text."""


class TextGiver:
    """The text of the tokens that the task predicts; numbers with spaces where nothing spells them."""

    gives: Gives = "text"

    def __init__(self, spell: Spelling | None, limits: FormLimits, *, writes: bool = False) -> None:
        self._spell = spell
        most: Schema = {"type": "integer", "minimum": 1, "maximum": limits.new_tokens}
        self.options: Mapping[str, Schema] = {"max_new_tokens": most} if writes else {}
        ids: Schema = {"type": "array", "items": {"type": "integer"}}
        self.schema: Schema = object_schema({"text": {"type": "string"}, "tokens": ids})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of rows of tokens, of which the first counts."""
        tokens = [int(one) for one in prediction[0]]
        text = self._spell(tokens) if self._spell is not None else " ".join(map(str, tokens))
        return {"text": text, "tokens": tokens}


class HiddenGiver:
    """For each hidden token the likeliest `top_k`, best first; and the text with the best of each."""

    gives: Gives = "tokens"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.options: Mapping[str, Schema] = {"top_k": {"type": "integer", "minimum": 1, "maximum": 1_000}}
        token: Schema = object_schema({"token": {"type": "string"}, "id": {"type": "integer"}, "score": NUMBER})
        place: Schema = object_schema(
            {"position": {"type": "integer"}, "tokens": {"type": "array", "items": token, "minItems": 1}}
        )
        self.schema: Schema = object_schema({"hidden": {"type": "array", "items": place}, "text": {"type": "string"}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of probabilities (1, time, vocab_size)."""
        chances: Tensor = prediction[0].float().cpu()
        chances = chances[:, : self._tokenizer.vocab_size]
        top = min(int(options.get("top_k", DEFAULT_TOP)), chances.shape[1])
        ids: list[int] = list(about["ids"])
        hidden = []
        for place in about["hidden"]:
            best = chances[place].topk(top)
            ids[place] = int(best.indices[0])
            hidden.append({"position": place, "tokens": self._tokens(best.indices.tolist(), best.values.tolist())})
        return {"hidden": hidden, "text": self._tokenizer.decode(ids)}

    def _tokens(self, ids: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
        return [
            {"token": self._tokenizer.decode([one], skip_special_tokens=False), "id": one, "score": json_number(score)}
            for one, score in zip(ids, scores, strict=True)
        ]
