"""Answers of a stream as one text of bytes for the cache: each message with its length before it.

Not here: which answers are kept (see `deepseek.serve.state.response_cache`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

_LENGTH = struct.Struct("<I")


def pack(messages: Sequence[bytes]) -> bytes:
    """Return the messages in one."""
    return b"".join(part for message in messages for part in (_LENGTH.pack(len(message)), message))


def unpack(kept: bytes) -> Iterator[bytes]:
    """Yield what `pack` was given."""
    start = 0
    while start < len(kept):
        (length,) = _LENGTH.unpack_from(kept, start)
        start += _LENGTH.size
        yield kept[start : start + length]
        start += length
