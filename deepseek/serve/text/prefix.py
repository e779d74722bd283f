"""Which page holds which text, so that texts that begin alike share the pages of their beginning.

The key of a full page is the identity of the page before it and its own tokens. Identities are never used twice, so a
key stands for the whole text up to the page's end, and it is compared token by token when it is found: two texts with
the same hash are never mixed. The first page's key begins with a salt in place of an identity: texts under different
salts never meet. A page is pending from the plan of a step to the end of that step; till then it must not be read.
Not here: who holds pages (see `blocks`).
Source: Zheng et al. 2023 (RadixAttention), arXiv:2312.07104.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

Key = tuple[Hashable, tuple[int, ...]]


class Found(NamedTuple):
    """The pages that hold the beginning of a text, the chain to go on with, and whether the next one is on its way."""

    blocks: list[int]
    chain: Hashable
    pending: bool


class PrefixIndex:
    """Full pages by their text.

    A chain is what stands for the text before a page: `root(salt)` before the first, then what `find` and `add` return.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._block_of: dict[Key, int] = {}
        self._key_of: list[Key | None] = [None] * num_blocks
        self._identity_of = [0] * num_blocks
        self._identities = 0
        self._pending: set[int] = set()

    def __len__(self) -> int:
        """Return the number of pages whose text is known."""
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        """Return whether the text of a page is known."""
        return self._key_of[block] is not None

    @staticmethod
    def root(salt: Hashable) -> Hashable:
        """Return the chain before the first page of a text."""
        return ("root", salt)

    def find(self, history: Sequence[int], limit: int, chain: Hashable) -> Found:
        """Return the pages that hold the beginning of `history`, together at most `limit` tokens."""
        size = self._block_size
        blocks: list[int] = []
        for start in range(0, limit - size + 1, size):
            block = self._block_of.get((chain, tuple(history[start : start + size])))
            if block is None:
                break
            if block in self._pending:
                return Found(blocks, chain, True)
            blocks.append(block)
            chain = self._identity_of[block]
        return Found(blocks, chain, False)

    def add(self, chain: Hashable, tokens: Sequence[int], block: int) -> Hashable:
        """Tell that `block` will hold `tokens` after the text of `chain`, from the next `settle` on; return its chain.

        Where another page has this text already, that one stays.
        """
        key = (chain, tuple(tokens))
        known = self._block_of.get(key)
        if known is not None:
            return self._identity_of[known]
        self._identities += 1
        self._block_of[key] = block
        self._key_of[block] = key
        self._identity_of[block] = self._identities
        self._pending.add(block)
        return self._identities

    def settle(self) -> None:
        """Tell that all pages added so far hold what was said."""
        self._pending.clear()

    def abandon(self) -> None:
        """Tell that the pages added since the last `settle` hold nothing of use."""
        for block in list(self._pending):
            self.forget(block)

    def forget(self, block: int) -> None:
        """Forget the text of a page, if it is known."""
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
            self._pending.discard(block)
