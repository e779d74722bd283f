"""The token cache: what it holds, when it is reused, and that it is whole or absent."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepseek.data.record_forms import Message
from deepseek.data.records import PIECE_CHARACTERS, read_documents
from deepseek.data.token_cache import TokenCache, build_token_cache
from deepseek.data.tokenizer import MIN_VOCAB_SIZE, Tokenizer
from deepseek.errors import DataError, StorageError

ROOT = Path(__file__).parents[2]
TEXTS = ["The quick brown fox. " * 5, "深度学习 🙂", "x"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320, allow_smaller=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rows(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))


def rows(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def built(folder: Path) -> list[str]:
    """Return the names of the caches in a folder, and of anything left over beside them."""
    return sorted(item.name for item in folder.iterdir() if item.name not in (".build.lock", "hashes.json"))


def document(cache: TokenCache, index: int) -> list[int]:
    return cache.tokens[cache.offsets[index] : cache.offsets[index + 1]].tolist()


def test_documents_follow_each_other_and_end_with_the_end_of_text(
    tokenizer: Tokenizer, source: Path, tmp_path: Path
) -> None:
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert [document(cache, index) for index in range(3)] == [
        [*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS
    ]
    assert (cache.num_documents, cache.num_tokens) == (3, cache.offsets[-1])
    assert (cache.tokens.dtype, cache.offsets.dtype, cache.loss_mask) == (np.uint16, np.int64, None)
    assert not cache.tokens.flags.writeable
    assert cache.vocab_size == tokenizer.vocab_size
    assert (cache.report.documents, cache.report.characters) == (3, sum(map(len, TEXTS)))


def test_a_vocabulary_over_16_bits_takes_32(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "vocab_size", (1 << 16) + 1)
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert cache.tokens.dtype == np.uint32
    assert document(cache, 1) == [*tokenizer.encode(TEXTS[1]), 0]


def test_loss_falls_on_answers_alone_in_chats_and_on_everything_in_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    source = rows(
        tmp_path / "a.jsonl", {"text": "xyz"}, {"messages": chat}, {"text": "x"}, {"prompt": "ab", "response": "cd"}
    )
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert cache.loss_mask is not None and cache.loss_mask.shape == cache.tokens.shape
    parts = [slice(cache.offsets[index], cache.offsets[index + 1]) for index in range(4)]
    expected = tokenizer.encode_chat([Message("user", "ab"), Message("assistant", "cd")], False)
    for part in (parts[1], parts[3]):
        assert cache.tokens[part].tolist() == [*expected, tokenizer.eos_id]
        assert cache.tokens[part][cache.loss_mask[part] == 1].tolist() == [*tokenizer.encode("cd"), tokenizer.end_id]
    for part in (parts[0], parts[2]):
        assert cache.loss_mask[part].all()


def test_the_first_chat_may_come_in_a_later_batch(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": "plain text"}] * 5 + [{"prompt": "a", "response": "b"}] + [{"text": "more"}] * 5
    source = rows(tmp_path / "a.jsonl", *records)
    whole = build_token_cache(source, tokenizer, tmp_path / "whole")
    monkeypatch.setattr("deepseek.data.token_cache._BATCH_CHARACTERS", 100)
    batched = build_token_cache(source, tokenizer, tmp_path / "batched")
    for name in ("tokens", "offsets", "loss_mask"):
        assert np.array_equal(getattr(whole, name), getattr(batched, name))


def test_a_long_text_file_is_one_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(PIECE_CHARACTERS // 8))
    (tmp_path / "a.txt").write_text(text)
    assert sum(1 for _ in read_documents(tmp_path / "a.txt")) > 1
    cache = build_token_cache(tmp_path / "a.txt", tokenizer, tmp_path / "cache")
    assert document(cache, 0) == [*tokenizer.encode(text), tokenizer.eos_id]
    assert cache.num_documents == cache.report.documents == 1


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any new tokenizing fail."""
    monkeypatch.setattr("deepseek.data.token_cache._write", lambda *_: pytest.fail("tokenized again"))


def test_an_equal_source_is_not_tokenized_again(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_token_cache(source, tokenizer, tmp_path / "cache")
    forbid(monkeypatch)
    again = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert again.path == first.path and np.array_equal(again.tokens, first.tokens)
    assert again.report == first.report
    shutil.copy(source, tmp_path / "other.jsonl")
    assert build_token_cache(tmp_path / "other.jsonl", tokenizer, tmp_path / "cache").path == first.path
    os.utime(source, (1, 1))
    assert build_token_cache(source, tokenizer, tmp_path / "cache").path == first.path


def test_content_is_hashed_again_only_when_a_file_changed(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = os.stat(source).st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: now + 10_000_000_000)
    build_token_cache(source, tokenizer, tmp_path / "cache")
    hashed: list[Path] = []
    real = sys.modules["deepseek.files"].sha256
    monkeypatch.setattr("deepseek.files.sha256", lambda path: (hashed.append(path), real(path))[1])
    build_token_cache(source, tokenizer, tmp_path / "cache")
    assert source not in hashed
    os.utime(source, ns=(now, now + 1))
    build_token_cache(source, tokenizer, tmp_path / "cache")
    assert source in hashed


def test_a_changed_file_is_noticed_even_with_its_old_size_and_time(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = os.stat(source).st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: now + 10_000_000_000)
    first = build_token_cache(source, tokenizer, tmp_path / "cache")
    source.write_text(source.read_text().replace("quick", "slick"))
    os.utime(source, ns=(now, now))
    second = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert second.path != first.path
    assert document(second, 0) == [*tokenizer.encode(TEXTS[0].replace("quick", "slick")), 0]


def test_another_tokenizer_or_policy_gives_another_cache(tokenizer: Tokenizer, source: Path, tmp_path: Path) -> None:
    small = Tokenizer.train(["x"], MIN_VOCAB_SIZE)
    paths = {
        build_token_cache(source, tokenizer, tmp_path / "cache").path,
        build_token_cache(source, small, tmp_path / "cache").path,
        build_token_cache(source, tokenizer, tmp_path / "cache", on_error="skip").path,
    }
    assert len(paths) == 3


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "loss.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_cache_is_noticed_and_built_again(
    tokenizer: Tokenizer, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = rows(tmp_path / "a.jsonl", {"prompt": "question", "response": "answer"})
    first = build_token_cache(source, tokenizer, tmp_path / "cache")
    tokens, path = first.tokens.copy(), first.path
    assert path is not None
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "flip":
        content[1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-3] if damage == "truncate" else b"")
    with pytest.raises(DataError, match="damaged"):
        TokenCache.open(path)
    again = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert again.path == path and np.array_equal(again.tokens, tokens)
    assert "building it again" in caplog.text
    assert built(tmp_path / "cache") == [path.name]


def test_a_damaged_list_of_hashes_is_ignored(tokenizer: Tokenizer, source: Path, tmp_path: Path) -> None:
    first = build_token_cache(source, tokenizer, tmp_path / "cache")
    for content in ("", "[]", '{"a": 1}', json.dumps({str(source): [1, 2]}), "\0"):
        (tmp_path / "cache" / "hashes.json").write_text(content)
        assert build_token_cache(source, tokenizer, tmp_path / "cache").path == first.path


def test_progress_ends_at_the_size_of_the_source(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek.data.token_cache._BATCH_CHARACTERS", 1)
    seen: list[tuple[int, int]] = []
    build_token_cache(source, tokenizer, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    size = source.stat().st_size
    assert len(seen) >= 3 and seen == sorted(seen) and seen[-1] == (size, size)


def test_an_error_in_the_data_leaves_no_cache(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        build_token_cache(source, tokenizer, tmp_path / "cache")
    assert built(tmp_path / "cache") == []
    cache = build_token_cache(source, tokenizer, tmp_path / "cache", on_error="skip")
    assert (cache.num_documents, cache.report.skipped, cache.report.reasons) == (1, 1, {"not valid JSON": 1})
    reopened = build_token_cache(source, tokenizer, tmp_path / "cache", on_error="skip")
    assert reopened.report == cache.report


def test_a_source_that_changes_while_it_is_read_is_refused(tokenizer: Tokenizer, source: Path, tmp_path: Path) -> None:
    def grow(done: int, total: int) -> None:
        with open(source, "a") as handle:
            handle.write('{"text": "more"}\n')

    with pytest.raises(DataError, match="changed while it was read"):
        build_token_cache(source, tokenizer, tmp_path / "cache", progress=grow)
    assert built(tmp_path / "cache") == []


def test_a_missing_source_writes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read"):
        build_token_cache(tmp_path / "none.txt", tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_a_storage_error(
    tokenizer: Tokenizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="choose a folder"):
        build_token_cache(source, tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_in_the_way_of_the_folder_is_a_storage_error(tokenizer: Tokenizer, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(StorageError, match="in the way"):
        build_token_cache(source, tokenizer, tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "x"


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FULL = """
import resource, sys
from deepseek.data.token_cache import build_token_cache
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    build_token_cache(sys.argv[1], Tokenizer.load(sys.argv[2]), sys.argv[3])
except StorageError as error:
    print(error.fix)
"""


def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", *({"text": f"{number} " * 50} for number in range(2000)))
    tokenizer.save(tmp_path / "tokenizer.json")
    output, errors = run(FULL, source, tmp_path / "tokenizer.json", tmp_path / "cache").communicate()
    assert "file size limit" in output, errors
    assert built(tmp_path / "cache") == []
    assert build_token_cache(source, tokenizer, tmp_path / "cache").num_documents == 2000


BUILD = """
import sys
from deepseek.data.token_cache import build_token_cache
from deepseek.data.tokenizer import Tokenizer
cache = build_token_cache(sys.argv[1], Tokenizer.load(sys.argv[2]), sys.argv[3])
print(cache.path.name, cache.num_tokens, int(cache.tokens.astype(int).sum()))
"""


def test_processes_that_build_the_same_cache_at_once_agree(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", *({"text": f"{number} " * 50} for number in range(2000)))
    tokenizer.save(tmp_path / "tokenizer.json")
    children = [run(BUILD, source, tmp_path / "tokenizer.json", tmp_path / "cache") for _ in range(3)]
    outputs = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    assert len({output for output, _ in outputs}) == 1
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert cache.path is not None and built(tmp_path / "cache") == [cache.path.name]
    assert outputs[0][0].split()[1:] == [str(cache.num_tokens), str(cache.tokens.astype(int).sum())]


KILLED = """
import os, signal, sys
from deepseek.data import token_cache
from deepseek.data.tokenizer import Tokenizer
token_cache._BATCH_CHARACTERS = 1000
calls = []
def progress(done, total):
    calls.append(done)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
token_cache.build_token_cache(sys.argv[1], Tokenizer.load(sys.argv[2]), sys.argv[3], progress=progress)
"""


def test_what_a_killed_builder_left_is_removed_by_the_next(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", *({"text": f"{number} " * 50} for number in range(200)))
    tokenizer.save(tmp_path / "tokenizer.json")
    child = run(KILLED, source, tmp_path / "tokenizer.json", tmp_path / "cache")
    child.communicate()
    assert child.returncode == -9
    assert [".tmp-" in name for name in built(tmp_path / "cache")] == [True]
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert cache.path is not None and built(tmp_path / "cache") == [cache.path.name]
