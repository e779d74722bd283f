"""The pool of pages: which are free, which are held and by how many, which are idle but worth keeping.

A page is a number; what stands in it is the runner's. Several sequences may hold one page, none copies it. All
operations are O(1): idle pages are in order of their last use, the longest unused is given away first.
Not here: which text stands in a page (see `prefix`).
Source: Kwon et al. 2023 (PagedAttention), arXiv:2309.06180.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class BlockPool:
    """Pages 0 to `num_blocks` - 1 with their number of holders.

    `evicted` is called with an idle page that is about to be given to somebody else.
    """

    def __init__(self, num_blocks: int, evicted: Callable[[int], None]) -> None:
        self.total = num_blocks
        self._holders = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._evicted = evicted

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.total - self.available

    def holders(self, block: int) -> int:
        """Return how many hold a page."""
        return self._holders[block]

    def take(self) -> int:
        """Return a page for one holder; there must be an available one."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._evicted(block)
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a holder to a page that is held or idle."""
        if self._holders[block] == 0:
            del self._idle[block]
        self._holders[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """Take a holder away; a page without holders is idle where `keep` is set, else free."""
        self._holders[block] -= 1
        if self._holders[block] == 0:
            if keep:
                self._idle[block] = None
            else:
                self._free.append(block)
