"""What a file is, by its first bytes; its name only decides between kinds of plain text.

Sources: the format documents of PNG, JPEG, GIF, BMP, TIFF, WebP, RIFF/WAVE, FLAC (RFC 9639), Ogg (RFC 3533),
IDX (http://yann.lecun.com/exdb/mnist), NPY, NIfTI-1, HDF5 and Parquet. Not here: reading any of them.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from pathlib import Path

from deepseek.data.sources import TEXT_SUFFIXES

_HEAD = 1 << 16
_IMAGES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"P4\n",
    b"P5\n",
    b"P6\n",
)
_AUDIO = (b"fLaC", b"OggS")
_OTHERS = {
    b"\x93NUMPY": "npy",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PAR1": "parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "PDF",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_IDX_TYPES = b"\x08\x09\x0b\x0c\x0d\x0e"
_COCO_LISTS = re.compile(r'"(info|licenses|images|annotations|categories)"\s*:\s*[\[{]')
_COCO_KEYS = re.compile(r'"(file_name|image_id|supercategory)"\s*:')


def kind_of(path: Path) -> str:
    """Return one word for what a file holds.

    "image", "audio", "idx", "npy", "npz", "nifti", "hdf5", "voc", "coco", "kdconv", "jsonl", "csv" and "text" can be
    read as data sets; others ("json", "xml", "zip", "gzip", "binary", "empty", "unreadable") only name what is there.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(_HEAD)
    except OSError:
        return "unreadable"
    if not head:
        return "empty"
    return _binary_kind(head) or _text_kind(head, path.suffix.lower())


def _binary_kind(head: bytes) -> str | None:
    if head.startswith(b"\x1f\x8b"):
        inner = _gunzip(head)
        return "idx" if _is_idx(inner) else "nifti" if _is_nifti(inner) else "gzip"
    if head.startswith(b"PK\x03\x04"):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "npz" if name.endswith(b".npy") else "zip"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return {b"WAVE": "audio", b"WEBP": "image"}.get(head[8:12], "binary")
    if head.startswith(_IMAGES):
        return "image"
    if head.startswith(_AUDIO):
        return "audio"
    if _is_idx(head):
        return "idx"
    if _is_nifti(head):
        return "nifti"
    return next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), None)


def _gunzip(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error:
        return b""


def _is_idx(head: bytes) -> bool:
    return len(head) >= 8 and head[:2] == b"\0\0" and head[2] in _IDX_TYPES and 1 <= head[3] <= 8


def _is_nifti(head: bytes) -> bool:
    return head[344:348] == b"n+1\0" and head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # 348, the header's size


def _text_kind(head: bytes, suffix: str) -> str:
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if b"\0" in head:
        return "binary"
    if suffix in (".csv", ".tsv"):
        return "csv"
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return "binary"
        text = head[: error.start].decode("utf-8-sig")
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return _json_kind(start, suffix)
    if start.startswith("<"):
        return "voc" if "<annotation" in start else "xml" if suffix == ".xml" else "text"
    return "csv" if suffix not in TEXT_SUFFIXES and _is_table(text) else "text"


def _json_kind(text: str, suffix: str) -> str:
    if text.startswith("["):
        if '"messages"' in text and '"message"' in text:
            return "kdconv"
        return "json" if suffix == ".json" else "text"
    try:
        first = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict):
        return "coco" if {"images", "annotations"} <= first.keys() else "jsonl"
    names = set(_COCO_LISTS.findall(text))
    if len(names) > 1 or (names and _COCO_KEYS.search(text)):
        return "coco"
    return "json" if suffix == ".json" or "\n" in text[:4096] else "jsonl"


def _is_table(text: str) -> bool:
    """Return whether the first lines have the same number of columns, more than one."""
    for delimiter in (",", "\t", ";"):
        try:
            rows = list(csv.reader(text.splitlines()[:6], delimiter=delimiter, strict=True))[:5]
        except csv.Error:
            continue
        if len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return True
    return False
