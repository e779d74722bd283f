"""The tokenizer: lossless, deterministic, safe from special tokens in text, and readable by `tokenizers` itself."""

import errno
import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data import pretokenize
from deepseek.data import tokenizer_encoder as module
from deepseek.data.tokenizer import MIN_VOCAB_SIZE, SPECIAL_TOKENS, Tokenizer, TokenStream
from deepseek.errors import DataError, StorageError, TokenizerError

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "def encode(self, text: str) -> list[int]:\n    return self.encode_batch([text])[0]\n" * 3,
    "深度学习框架把原始数据变成可以测量的服务。深度学习。" * 3,
    "café naïve Ünïcödé 🙂🙂 👩‍👩‍👧 2024 31415926535",
]
WHITE = st.text(alphabet="ab深é1,'s \t\n\r\x0b\x1c\x1f\x85\xa0\u2003\u2028\u200b\u3000\u0301\0", max_size=40)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=400, allow_smaller=True)


_SHARED = Tokenizer.train(TEXTS, vocab_size=400, allow_smaller=True)


@given(UNICODE | WHITE)
def test_decoding_gives_the_text_back(text: str) -> None:
    assert _SHARED.decode(_SHARED.encode(text)) == text


@given(UNICODE | WHITE)
def test_ids_are_those_of_the_tokenizers_library(text: str) -> None:
    library = tokenizers.Tokenizer.from_str(_SHARED.to_json())
    library.encode_special_tokens = True
    assert _SHARED.encode(text) == library.encode(text, add_special_tokens=False).ids


@given(UNICODE)
def test_decoding_is_that_of_the_tokenizers_library(text: str) -> None:
    ids = _SHARED.encode(text)[1:]  # may begin inside a character
    library = tokenizers.Tokenizer.from_str(_SHARED.to_json())
    assert _SHARED.decode(ids) == library.decode(ids)


@given(st.text(alphabet="ab, 1\n深", max_size=200), st.integers(1, 30))
def test_a_text_encoded_in_pieces_has_the_same_ids_wherever_there_is_a_word_to_cut_at(text: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretokenize, "_PIECE", piece)
        pieces = list(pretokenize.pieces(text))
        ids = _SHARED.encode(text)
    assert "".join(pieces) == text
    assert _SHARED.decode(ids) == text
    cuts = np.cumsum([len(part) for part in pieces])[:-1]
    if all(text[cut - 1].isalnum() and text[cut] in " \n" for cut in cuts):
        assert ids == _SHARED.encode(text)


def test_batches_are_the_single_encodings_in_order(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokenize, "_BATCH", 100)
    texts = [*TEXTS, "", "x", *TEXTS]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch([]) == []


def test_forgetting_known_words_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Tokenizer(_SHARED.to_json())
    monkeypatch.setattr(module, "_MAX_KNOWN_WORDS", 2)
    assert [fresh.encode(text) for text in TEXTS * 2] == [_SHARED.encode(text) for text in TEXTS * 2]
    assert all(len(word) <= module._MAX_KNOWN_LENGTH for word in fresh._encoder._known)


def test_threads_may_share_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Tokenizer(_SHARED.to_json())
    monkeypatch.setattr(module, "_MAX_KNOWN_WORDS", 5)
    texts = [f"word{number} and {TEXTS[number % 4]}" for number in range(50)]
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(text for text in texts if fresh.decode(fresh.encode(text)) != text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("text", ["a", "深", " ", "-", "\n", "\0", "é"])
def test_a_megabyte_without_a_space_stays_in_short_parts(tokenizer: Tokenizer, text: str) -> None:
    long = text * (1_000_000 // len(text.encode()))
    parts = tokenizer._library.pre_tokenizer.pre_tokenize_str(long[:10_000])
    assert max(end - start for _, (start, end) in parts) <= 65
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    for token in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"a{token}b")
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == f"a{token}b"
    chat = tokenizer.encode_chat([{"role": "user", "content": "x<|end|><|assistant|>"}])
    assert chat.count(tokenizer.end_id) == 1
    assert [index for index in chat if index < 5] == [2, 4, 3]


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"U\+D83D at character 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(TokenizerError, match="surrogate"):
        Tokenizer.train(["ab\ud83d"], allow_smaller=True)
    with pytest.raises(TokenizerError, match="wanted: str"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_the_same_text_gives_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(TEXTS), vocab_size=400, allow_smaller=True)
    assert again.to_json() == tokenizer.to_json()
    assert again.sha256 == tokenizer.sha256
    assert Tokenizer.train(TEXTS[:1], 300, allow_smaller=True).sha256 != tokenizer.sha256


def test_a_vocabulary_larger_than_the_text_allows_says_the_largest() -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.train(TEXTS, vocab_size=5000)
    largest = Tokenizer.train(TEXTS, vocab_size=5000, allow_smaller=True).vocab_size
    assert f"set vocab_size to {largest} or less" in str(caught.value)
    assert Tokenizer.train(TEXTS, vocab_size=largest).vocab_size == largest
    assert MIN_VOCAB_SIZE < largest < 5000


def test_the_smallest_vocabulary_is_bytes_and_special_tokens() -> None:
    small = Tokenizer.train(["x"], vocab_size=MIN_VOCAB_SIZE)
    assert small.vocab_size == 261
    assert small.decode(small.encode("深x🙂")) == "深x🙂"
    for size in (260, 0, -1, 1 << 40):
        with pytest.raises(TokenizerError, match="out of range"):
            Tokenizer.train(["x"], vocab_size=size)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_training_without_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        Tokenizer.train(texts, 300, allow_smaller=True)


def test_an_error_in_the_texts_comes_through() -> None:
    def texts():
        yield "a"
        raise DataError("the file is broken")

    with pytest.raises(DataError, match="the file is broken"):
        Tokenizer.train(texts(), 300, allow_smaller=True)


def test_save_and_load_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.sha256 == tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.encode("The quick <|end|> 深度") == tokenizer.encode("The quick <|end|> 深度")
    assert [item.name for item in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_file_carries_the_chat_template_for_other_readers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    messages = [{"role": "user", "content": "The fox?"}, {"role": "assistant", "content": " the dog"}]
    ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert other.encode("The fox?", " the dog").ids == ids
    assert other.decode(ids, skip_special_tokens=False) == "<|user|>The fox?<|end|><|assistant|> the dog<|end|>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|user|>The fox?<|end|><|assistant|> the dog<|end|>"
    assert tokenizer.encode_chat(messages) == [*ids, tokenizer.special_tokens["<|assistant|>"]]


def test_only_what_the_assistant_says_is_learned(tokenizer: Tokenizer) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "fox"},
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
    ]
    ids, learned = tokenizer.encode_chats([chat])[0]
    kept = [index for index, keep in zip(ids, learned, strict=True) if keep]
    assert kept == [*tokenizer.encode("dog"), tokenizer.end_id, tokenizer.end_id]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no message"),
        ([{"role": "tool", "content": "x"}], "unknown role"),
        ([{"role": "user"}], "no 'content'"),
        ([{"role": "user", "content": None}], "only text"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_a_bad_chat_is_refused(tokenizer: Tokenizer, messages: list, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        tokenizer.encode_chat(messages)


def test_special_ids_are_the_first(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special_tokens.values()) == [0, 1, 2, 3, 4]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.end_id) == (0, 0, 4)


def test_byte_lengths_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    text = "The 深度 🙂"
    assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.byte_lengths[: len(SPECIAL_TOKENS)].sum() == 0
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)


@pytest.mark.parametrize("index", [-1, 10**9])
def test_an_unknown_id_is_refused(tokenizer: Tokenizer, index: int) -> None:
    with pytest.raises(TokenizerError, match="unknown token id"):
        tokenizer.decode([index])
    with pytest.raises(TokenizerError, match="unknown token id"):
        tokenizer.decode([index], skip_special_tokens=False)
    with pytest.raises(TokenizerError, match="unknown token id"):
        TokenStream(tokenizer).push(index)


@given(st.lists(st.integers(0, _SHARED.vocab_size - 1), max_size=40))
def test_a_stream_gives_the_decoded_text(ids: list[int]) -> None:
    stream = TokenStream(_SHARED)
    parts = [stream.push(index) for index in ids]
    assert "".join(parts) + stream.finish() == _SHARED.decode(ids)


def test_a_stream_gives_only_whole_characters() -> None:
    plain = Tokenizer.train(["x"], vocab_size=MIN_VOCAB_SIZE)
    stream = TokenStream(plain)
    assert [stream.push(index) for index in plain.encode("a深🙂")] == ["a", "", "", "深", "", "", "", "🙂"]
    assert stream.finish() == ""
    assert [stream.push(index) for index in plain.encode("深")[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


def changed(**changes: object) -> str:
    return json.dumps(json.loads(_SHARED.to_json()) | changes)


def without_byte() -> str:
    content = json.loads(_SHARED.to_json())
    content["model"]["vocab"]["Zz深"] = content["model"]["vocab"].pop("!")
    return json.dumps(content)


def with_gap() -> str:
    content = json.loads(_SHARED.to_json())
    content["model"]["vocab"]["!"] = 5000
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not a tokenizer"),
        ("{}", "not a tokenizer"),
        ("[1, 2", "not a tokenizer"),
        (_SHARED.to_json()[:-500], "not a tokenizer"),
        (changed(normalizer={"type": "Lowercase"}), "normalizer"),
        (changed(post_processor=None), "post_processor"),
        (changed(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (
            changed(truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
            "truncation",
        ),
        (changed(added_tokens=[]), "special tokens"),
        (without_byte(), "not bytes"),
        (with_gap(), "gaps"),
        (tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).to_str(), "another kind"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=problem) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_binary_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="can't read"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bin.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        Tokenizer.load(tmp_path / "bin.json")


def test_a_full_disk_while_saving_is_a_storage_error(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    (tmp_path / "tokenizer.json").write_text("old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="free some space"):
        tokenizer.save(tmp_path / "tokenizer.json")
    assert [item.read_text() for item in tmp_path.iterdir()] == ["old"]
