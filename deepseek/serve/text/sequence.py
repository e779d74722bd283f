"""One text on its way through the scheduler: its tokens, its pages, and how far it is computed.

Not here: what becomes of the tokens (see `answer_text`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from deepseek.serve.text.plan import Sampling


class TextSequence:
    """A prompt and the answer so far.

    `number` tells the order of arrival and is unique. `history` is prompt and answer; the first `computed` tokens of it
    stand in `blocks`, pages in order. `chain` stands for the text of the first `published` pages (see `prefix`); None:
    it shares nothing.
    """

    __slots__ = (
        "blocks",
        "cached_tokens",
        "chain",
        "computed",
        "history",
        "number",
        "prompt_length",
        "published",
        "sampling",
        "root",
    )

    def __init__(self, number: int, prompt_ids: Sequence[int], sampling: Sampling, root: Hashable | None) -> None:
        self.number = number
        self.history = list(prompt_ids)
        self.prompt_length = len(prompt_ids)
        self.sampling = sampling
        self.root = root
        self.chain = root
        self.blocks: list[int] = []
        self.computed = 0
        self.published = 0
        self.cached_tokens: int | None = None
        """Tokens of the prompt that were found computed when it began; None until then."""

    @property
    def pending(self) -> int:
        """Tokens of the history that are not computed yet; 1 while an answer is generated."""
        return len(self.history) - self.computed

    def clear(self) -> list[int]:
        """Give up all pages and return them; everything is to be computed again."""
        blocks, self.blocks = self.blocks, []
        self.computed = 0
        return blocks


def positions(prompt_tokens: int, max_new_tokens: int) -> int:
    """Return the most tokens of a sequence that are ever computed: the last one of the answer is not."""
    return prompt_tokens + max_new_tokens - 1
