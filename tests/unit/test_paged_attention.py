"""Attention to pages: against float64 attention of each text alone; the same to the bit however the steps are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn import native_build, paged_attention
from deepseek.nn.paged_attention import write_pages
from tests.native_ways import WAYS, take

LENGTHS = ((7, 7), (33, 1), (1, 1), (50, 18))
"""Keys of each text, and how many of them are new."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel for this processor, the one for any other, and none."""
    return take(request.param, paged_attention, monkeypatch)


class Texts:
    """Texts with keys and values in pages that are taken in no order."""

    def __init__(self, heads: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype, block: int = 5) -> None:
        generator = torch.Generator().manual_seed(heads)
        self.whole = [
            [torch.randn(length, count, dim, generator=generator) for count, dim in zip(
                (heads, kv_heads, kv_heads), (dims[0], *dims), strict=True
            )]
            for length, _ in LENGTHS
        ]  # fmt: skip
        need = [-(-length // block) for length, _ in LENGTHS]
        order = torch.randperm(sum(need) + 3, generator=generator).to(torch.int32)
        self.table = torch.full((len(LENGTHS), max(need)), 10**6, dtype=torch.int32)
        for text, pages in enumerate(order[: sum(need)].split(need)):
            self.table[text, : len(pages)] = pages
        self.pages = [torch.full((len(order), block, kv_heads, dim), torch.nan).to(dtype) for dim in dims]
        self.block, self.dtype = block, dtype
        for text, (_, keys, values) in enumerate(self.whole):
            place = torch.arange(len(keys))
            slots = self.table[text].long()[place // block] * block + place % block
            for pages, rows in zip(self.pages, (keys, values), strict=True):
                write_pages(pages, slots, rows)

    def attend(self, pieces: list[tuple[int, int, int]], scale: float = 0.3) -> list[Tensor]:
        """Return the answers of (text, first token, end) in one step."""
        query = torch.cat([self.whole[text][0][first:end] for text, first, end in pieces])
        sizes = [end - first for _, first, end in pieces]
        starts = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
        lengths = torch.tensor([end for *_, end in pieces], dtype=torch.int32)
        table = self.table[[text for text, *_ in pieces]]
        found = paged_attention.paged_attention(query, *self.pages, table, starts, lengths, scale)
        return list(found.split(sizes))

    def reference(self, text: int, first: int, end: int, scale: float = 0.3) -> Tensor:
        query, keys, values = (part.double() for part in self.whole[text])
        keys, values = (part.to(self.dtype).double() for part in (keys, values))
        keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[first:end], keys[:end]) * scale
        seen = torch.arange(end)[None] <= torch.arange(first, end)[:, None]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values[:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims"),
    [(4, 4, (16, 16)), (6, 2, (64, 64)), (5, 1, (24, 40)), (9, 3, (7, 130)), (1, 1, (1, 1))],
)
def test_each_text_sees_its_own_past(
    way: str, heads: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype
) -> None:
    texts = Texts(heads, kv_heads, dims, dtype)
    pieces = [(text, length - new, length) for text, (length, new) in enumerate(LENGTHS)]
    for found, piece in zip(texts.attend(pieces), pieces, strict=True):
        torch.testing.assert_close(found.double(), texts.reference(*piece), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (12, 1)])
def test_an_answer_does_not_depend_on_the_step(heads: int, kv_heads: int) -> None:
    if paged_attention.library() is None:
        pytest.skip("no compiler")
    texts = Texts(heads, kv_heads, (32, 20), torch.float32)
    whole = [texts.attend([(text, 0, length)])[0] for text, (length, _) in enumerate(LENGTHS)]
    together = texts.attend([(text, 0, length) for text, (length, _) in enumerate(LENGTHS)])
    assert all(torch.equal(a, b) for a, b in zip(whole, together, strict=True))
    for text, (length, _) in enumerate(LENGTHS):
        for cut in (1, 2, 3, 7, 16):
            bounds = [*range(0, length, cut), length]
            cuts = zip(bounds, bounds[1:], strict=False)
            pieces = [texts.attend([(3, 20, 31), (text, first, end)])[1] for first, end in cuts]
            assert torch.equal(torch.cat(pieces), whole[text])


def test_large_scores_and_strided_tensors(way: str) -> None:
    texts = Texts(4, 2, (16, 16), torch.float32)
    found = texts.attend([(1, 20, 33)], scale=80.0)[0]
    torch.testing.assert_close(found.double(), texts.reference(1, 20, 33, scale=80.0), rtol=1e-3, atol=1e-3)
    plain = texts.attend([(1, 20, 33)])[0]
    texts.pages = [torch.cat([pages, pages], dim=3)[..., :16] for pages in texts.pages]
    texts.whole[1][0] = texts.whole[1][0].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(texts.attend([(1, 20, 33)])[0], plain)
    rows = torch.randn(2, 3, 16).transpose(0, 1)  # (3 tokens, 2 heads, 16), strided
    write_pages(texts.pages[0], torch.tensor([4, 0, 17]), rows)
    assert torch.equal(texts.pages[0].flatten(0, 1)[[4, 0, 17]], rows)


def test_pages_round_as_torch_does(way: str) -> None:
    rows = torch.tensor([1.0, 1.00390625, 1.01171875, -3.3e38, torch.inf, torch.nan, 1e-40, -0.0]).view(1, 1, 8)
    pages = torch.zeros(2, 4, 1, 8, dtype=torch.bfloat16)
    write_pages(pages, torch.tensor([6]), rows)
    torch.testing.assert_close(pages[1, 2], rows[0].bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_no_tokens_and_other_dtypes(way: str) -> None:
    texts = Texts(4, 2, (16, 16), torch.float32)
    found = paged_attention.paged_attention(
        torch.empty(0, 4, 16),
        *texts.pages,
        texts.table[:0],
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(0).int(),
        1.0,
    )
    assert found.shape == (0, 4, 16)
    texts.whole[0][0] = texts.whole[0][0].bfloat16()
    assert texts.attend([(0, 0, 7)])[0].dtype == torch.bfloat16
    with pytest.raises(ModelError, match="heads"):
        paged_attention.paged_attention(torch.empty(1, 3, 16), *texts.pages, *([torch.zeros(1)] * 3), 1.0)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_build.SWITCH, "0")
    assert paged_attention.library.__wrapped__() is None
