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


class _Call(ctypes.Structure):
    _fields_ = [
        ("query", ctypes.c_void_p),
        ("query_token", ctypes.c_int64),
        ("query_head", ctypes.c_int64),
        ("keys", _Pages),
        ("values", _Pages),
        *((name, ctypes.c_void_p) for name in ("block_table", "starts", "lengths", "output")),
        *((name, ctypes.c_int64) for name in ("sequences", "max_blocks", "block_size", "heads", "kv_heads", "bf16")),
        ("scale", ctypes.c_double),
    ]


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
    native = library() if _fits(key_pages) and _fits(value_pages) and key_pages.dtype == value_pages.dtype else None
    if native is None or query.shape[0] == 0:
        return _in_torch(query, key_pages, value_pages, block_table, starts, lengths, scale)
    rows = query if query.dtype == torch.float32 and query.stride(2) == 1 else query.float().contiguous()
    table, starts, lengths = (x.to(torch.int32).contiguous() for x in (block_table, starts, lengths))
    tokens, heads, dim = rows.shape
    output = torch.empty(tokens, heads, value_pages.shape[3])
    call = _Call(
        rows.data_ptr(), rows.stride(0), rows.stride(1), _described(key_pages), _described(value_pages),
        table.data_ptr(), starts.data_ptr(), lengths.data_ptr(), output.data_ptr(), lengths.shape[0], table.shape[1],
        key_pages.shape[1], heads, key_pages.shape[2], key_pages.dtype == torch.bfloat16, scale,
    )  # fmt: skip
    work = tokens * heads * dim * table.shape[1] * key_pages.shape[1]
    native.paged_attention(ctypes.byref(call), ctypes.c_int64(torch.get_num_threads() if work > _SERIAL else 1))
    return output.to(query.dtype)


def write_pages(pages: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write `rows` (tokens, kv_heads, dim) into `pages` (num_blocks, block_size, kv_heads, dim) at `slots`.

    `slots` (tokens,) int64: page * block_size + place in the page; each is there once.
    """
    native = library() if _fits(pages) and rows.dtype == torch.float32 and rows.stride(2) == 1 else None
    if native is None:
        pages[slots // pages.shape[1], slots % pages.shape[1]] = rows.to(pages.dtype)
        return
    described, places = _described(pages), slots.to(torch.int64).contiguous()
    native.write_pages(
        *(ctypes.c_void_p(rows.data_ptr()), ctypes.c_int64(rows.stride(0)), ctypes.c_int64(rows.stride(1))),
        *(ctypes.byref(described), ctypes.c_void_p(places.data_ptr())),
        *(ctypes.c_int64(number) for number in (*rows.shape[:2], pages.shape[1], pages.dtype == torch.bfloat16)),
    )


def _fits(pages: Tensor) -> bool:
    return pages.is_cpu and pages.dtype in (torch.float32, torch.bfloat16) and pages.stride(3) == 1


def _described(pages: Tensor) -> _Pages:
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
