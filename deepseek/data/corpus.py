"""English text that comes with Python itself: the language reference and the standard library's docstrings.

For a first model without any download. The modules are parsed, never imported. Not here: other corpora.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import deepseek.files as files
from deepseek.errors import DataError

MIN_CHARACTERS = 80
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def python_corpus() -> Iterator[str]:
    """Yield the reference's topics, then the docstrings of the standard library, each text once.

    Always in the same order on the same Python. Texts shorter than `MIN_CHARACTERS` are left out, indentation is
    removed. Modules without source (a zipped or stripped library) give nothing.
    """
    seen: set[bytes] = set()
    for text in _texts():
        if len(text) < MIN_CHARACTERS:
            continue
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def write_python_corpus(path: str | Path) -> int:
    """Write the corpus as JSON lines, atomically, and return its number of documents.

    Raises DataError where this Python has too little text, StorageError when the disk refuses.
    """
    count = characters = 0
    with files.atomic_path(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for text in python_corpus():
            handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
            characters += len(text)
        if characters < 200_000:
            raise DataError(
                "this Python comes without its source, so it has too little text",
                found=f"{characters} characters",
                wanted="about 2 million",
                fix="use text of your own",
            )
    return count


def _texts() -> Iterator[str]:
    for name in sorted(topics):
        yield topics[name].strip()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if _SKIPPED.isdisjoint(path.relative_to(root).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a template or a test of the parser, not a module
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield text.strip()
