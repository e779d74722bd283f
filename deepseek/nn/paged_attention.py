"""Attention to keys and values in pages, for the new tokens of many texts at once: our C++ kernel, or plain torch.

A token's answer does not depend on the other texts in the step, nor on how its own text was cut into steps: with the
kernel to the bit, without it up to rounding. Not here: who holds which page (`deepseek.serve.text`).
Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
arXiv:2309.06180.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.dot_product_attention import attention
from deepseek.nn.native_build import load_library

_SERIAL = 1 << 14  # below so many multiplications, waking other threads costs more than it saves


class _Pages(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("page", "token", "head", "dim")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("token", ctypes.c_int64), ("head", ctypes.c_int64)]


class NativeTexts(ctypes.Structure):
    """`Texts` as the kernel reads them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("block_table", "starts", "lengths", "slots")),
        *((name, ctypes.c_int64) for name in ("count", "max_blocks")),
    ]


class AttentionCall(ctypes.Structure):
    """What the kernel reads of one layer's attention."""

    _fields_ = [
        ("texts", ctypes.POINTER(NativeTexts)),
        *((name, _Rows) for name in ("query", "new_keys", "new_values")),
        ("keys", _Pages),
        ("values", _Pages),
        ("output", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block_size", "heads", "kv_heads", "bf16")),
        ("scale", ctypes.c_double),
    ]


class Texts(NamedTuple):
    """Where the tokens of a step belong; see `paged_attention` and `write_pages`. All contiguous and on the CPU."""

    block_table: Tensor
    starts: Tensor
    lengths: Tensor
    slots: Tensor

    def describe(self, native: NativeTexts) -> None:
        """Tell the kernel."""
        native.block_table, native.starts = self.block_table.data_ptr(), self.starts.data_ptr()
        native.lengths, native.slots = self.lengths.data_ptr(), self.slots.data_ptr()
        native.count, native.max_blocks = self.block_table.shape


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel; the first call on a machine compiles it, in about two seconds."""
    return load_library(Path(__file__).with_suffix(".cpp")).handle


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_table: Tensor,
    starts: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return (tokens, num_heads, value_dim) in the dtype of `query` (tokens, num_heads, head_dim).

    `key_pages` (num_blocks, block_size, kv_heads, head_dim) and `value_pages` (..., value_dim), both fp32 or bf16;
    kv_heads divides num_heads. `block_table` (texts, pages) int32: each text's pages in order. `starts` (texts + 1,)
    int32: where the queries of each text begin, and at last their number. `lengths` (texts,) int32: the keys of each
    text, of which its queries are the last; a query looks at its own key and those before.
    Raises ModelError for heads that can't be shared.
    """
    if query.shape[1] % key_pages.shape[2]:
        raise ModelError("heads can't share keys", found=f"{query.shape[1]} heads, {key_pages.shape[2]} of keys")
    native = library() if fits(key_pages) and fits(value_pages) and key_pages.dtype == value_pages.dtype else None
    if native is None or query.shape[0] == 0:
        return _in_torch(query, key_pages, value_pages, block_table, starts, lengths, scale)
    rows = query if query.dtype == torch.float32 and query.stride(2) == 1 else query.float().contiguous()
    table, starts, lengths = (x.to(torch.int32).contiguous() for x in (block_table, starts, lengths))
    texts, (tokens, heads, dim) = NativeTexts(), rows.shape
    Texts(table, starts, lengths, lengths).describe(texts)
    output = torch.empty(tokens, heads, value_pages.shape[3])
    call = AttentionCall(
        texts=ctypes.pointer(texts), query=_Rows(rows.data_ptr(), rows.stride(0), rows.stride(1)),
        keys=described(key_pages), values=described(value_pages), output=output.data_ptr(),
        block_size=key_pages.shape[1], heads=heads, kv_heads=key_pages.shape[2],
        bf16=key_pages.dtype == torch.bfloat16, scale=scale,
    )  # fmt: skip
    work = tokens * heads * dim * table.shape[1] * key_pages.shape[1]
    native.paged_attention(ctypes.byref(call), ctypes.c_int64(torch.get_num_threads() if work > _SERIAL else 1))
    return output.to(query.dtype)


def write_pages(pages: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write `rows` (tokens, kv_heads, dim) into `pages` (num_blocks, block_size, kv_heads, dim) at `slots`.

    `slots` (tokens,) int64: page * block_size + place in the page; each is there once.
    """
    native = library() if fits(pages) and rows.dtype == torch.float32 and rows.stride(2) == 1 else None
    if native is None:
        pages[slots // pages.shape[1], slots % pages.shape[1]] = rows.to(pages.dtype)
        return
    places = slots.to(torch.int64).contiguous()
    starts = torch.tensor([0, places.shape[0]], dtype=torch.int32)
    texts = NativeTexts(starts=starts.data_ptr(), slots=places.data_ptr(), count=1)
    call = AttentionCall(
        texts=ctypes.pointer(texts), new_keys=_Rows(rows.data_ptr(), rows.stride(0), rows.stride(1)),
        keys=described(pages), block_size=pages.shape[1], kv_heads=rows.shape[1], bf16=pages.dtype == torch.bfloat16,
    )  # fmt: skip
    native.paged_attention(ctypes.byref(call), ctypes.c_int64(1))


def fits(pages: Tensor) -> bool:
    """Return whether the kernel can read such pages."""
    return pages.is_cpu and pages.dtype in (torch.float32, torch.bfloat16) and pages.stride(3) == 1


def described(pages: Tensor) -> _Pages:
    """Return pages as the kernel reads them."""
    return _Pages(pages.data_ptr(), *pages.stride()[:3], pages.shape[3])


def _in_torch(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, table: Tensor, starts: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    bounds, found = starts.tolist(), [query.new_empty(0, query.shape[1], value_pages.shape[3])]
    for text, length in enumerate(lengths.tolist()):
        blocks = table[text, : -(-length // key_pages.shape[1])].to(torch.int64)
        parts = (pages[blocks].flatten(0, 1)[:length] for pages in (key_pages, value_pages))
        key, value = (part.transpose(0, 1)[None].to(query.dtype) for part in parts)
        mine = query[bounds[text] : bounds[text + 1]].transpose(0, 1)[None]
        if mine.shape[2]:
            found.append(attention(mine, key, value, causal=True, scale=scale)[0].transpose(0, 1))
    return torch.cat(found)
