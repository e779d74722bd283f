"""The pool of pages and the index of their texts, each against a plain model of itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepseek.serve.text.blocks import BlockPool
from deepseek.serve.text.prefix import PrefixIndex


class PoolAgainstLists(RuleBasedStateMachine):
    """Holders counted in a dict, idle pages in a list, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(5, self.evicted.append)
        self.holders: dict[int, int] = {}
        self.idle: list[int] = []

    @precondition(lambda self: len(self.holders) < 5)
    @rule()
    def take(self) -> None:
        fresh = 5 - len(self.holders) - len(self.idle)
        self.evicted.clear()
        block = self.pool.take()
        assert block not in self.holders
        assert self.evicted == ([] if fresh else [self.idle[0]])
        if not fresh:
            assert block == self.idle.pop(0)
        self.holders[block] = 1

    @precondition(lambda self: self.holders or self.idle)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders) + self.idle))
        self.pool.share(block)
        self.holders[block] = self.holders.get(block, 0) + 1
        self.idle = [other for other in self.idle if other != block]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.pool.release(block, keep=keep)
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]
            self.idle += [block] if keep else []

    @invariant()
    def the_counts_agree(self) -> None:
        assert self.pool.used == len(self.holders)
        assert self.pool.available == 5 - len(self.holders)
        assert all(self.pool.holders(block) == self.holders.get(block, 0) for block in range(5))


TestPoolAgainstLists = PoolAgainstLists.TestCase
TestPoolAgainstLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

_TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12)


def keep(index: PrefixIndex, text: list[int], salt: str | None, first_block: int) -> None:
    chain = index.root(salt)
    for page in range(len(text) // 2):
        chain = index.add(chain, text[2 * page : 2 * page + 2], first_block + page)
    index.settle()


@given(_TEXTS, st.lists(st.sampled_from([None, "a"]), min_size=12, max_size=12))
def test_what_is_found_are_the_longest_beginnings_of_the_same_salt(texts, salts):
    index, held = PrefixIndex(100, 2), {}
    for number, (text, salt) in enumerate(zip(texts, salts, strict=False)):
        found = index.find(text, len(text), index.root(salt))
        beginnings = [(salt, tuple(text[:end])) for end in range(2, len(text) + 1, 2)]
        assert [held.get(beginning) for beginning in beginnings[: len(found.blocks)]] == found.blocks
        assert all(beginning not in held for beginning in beginnings[len(found.blocks) :])
        assert not found.pending
        keep(index, text, salt, 5 * number)
        for page, beginning in enumerate(beginnings):
            held.setdefault(beginning, 5 * number + page)
    assert len(index) == len(held)


def test_equal_hashes_do_not_mix_texts():
    class Colliding(int):
        def __hash__(self) -> int:
            return 7

    index = PrefixIndex(10, 2)
    keep(index, [Colliding(1), Colliding(2), Colliding(3), Colliding(4)], None, 0)
    keep(index, [Colliding(2), Colliding(1), Colliding(3), Colliding(4)], None, 2)
    for text, blocks in (([1, 2, 3, 4], [0, 1]), ([2, 1, 3, 4], [2, 3]), ([1, 3, 3, 4], []), ([1, 2, 4, 3], [0])):
        assert index.find([Colliding(token) for token in text], 4, index.root(None)).blocks == blocks


def test_equal_pages_behind_different_texts_are_different():
    index = PrefixIndex(10, 2)
    keep(index, [1, 2, 5, 5], None, 0)
    assert index.find([3, 4, 5, 5], 4, index.root(None)).blocks == []
    assert index.find([5, 5], 2, index.root(None)).blocks == []


def test_a_page_whose_beginning_was_given_away_is_not_found_by_another_beginning():
    index = PrefixIndex(10, 2)
    keep(index, [1, 2, 5, 5], None, 0)
    index.forget(0)
    assert index.find([1, 2, 5, 5], 4, index.root(None)).blocks == []
    keep(index, [3, 4], None, 0)  # the page holds another text now
    assert index.find([3, 4, 5, 5], 4, index.root(None)).blocks == [0]
    keep(index, [1, 2], None, 4)
    assert index.find([1, 2, 5, 5], 4, index.root(None)).blocks == [4]


def test_pages_are_pending_until_the_step_is_over():
    index = PrefixIndex(10, 2)
    keep(index, [1, 2], None, 0)
    chain = index.find([1, 2], 2, index.root(None)).chain
    index.add(chain, [3, 4], 1)
    found = index.find([1, 2, 3, 4], 4, index.root(None))
    assert (found.blocks, found.pending) == ([0], True)
    index.abandon()
    found = index.find([1, 2, 3, 4], 4, index.root(None))
    assert (found.blocks, found.pending, 1 in index) == ([0], False, False)
