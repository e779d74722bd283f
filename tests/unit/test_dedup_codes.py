"""SimHash and the search by Hamming distance, against the definitions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.cooker.dedup import NGrams, SimHashIndex, find_duplicates, simhash
from deepseek.data.cooker.dedup.hamming import hamming_pairs
from deepseek.data.cooker.dedup.ngrams import Features
from deepseek.data.cooker.dedup.simhash import majority_bits
from deepseek.data.cooker.dedup.tokens import tokenize
from deepseek.errors import ConfigError

texts_of_any_kind = st.lists(
    st.text(alphabet=st.sampled_from("abcXY ,.!\n\t\0é中文字ひらがな한국ＡＢ１٣\ud800😀"), max_size=40), max_size=12
)


def _majorities(features: Features) -> list[int]:
    """Return each text's SimHash as it is defined, bit by bit."""
    found = []
    for start, end in zip(features.offsets[:-1], features.offsets[1:], strict=True):
        hashes = [int(value) for value in features.hashes[start:end]]
        code = 0
        for bit in range(64):
            votes = 2 * sum(value >> bit & 1 for value in hashes)
            if votes > len(hashes) or (hashes and votes == len(hashes) and hashes[0] >> bit & 1):
                code |= 1 << bit
        found.append(code)
    return found


@given(texts_of_any_kind)
@settings(deadline=None)
def test_codes_of_texts_are_the_majorities_of_their_features(texts: list[str]) -> None:
    grams = NGrams(2, 2)
    assert simhash(texts, grams, workers=1).tolist() == _majorities(grams.features(texts))


@pytest.mark.parametrize("lengths", [(0, 1, 2, 3), (7, 8, 9, 300, 31, 0), (4095, 4096, 4097, 70_000)])
def test_counters_hold_texts_of_any_length(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, sum(lengths), dtype=np.uint64)
    features = Features(hashes, np.concatenate([[0], np.cumsum(lengths)]))
    assert majority_bits(features).tolist() == _majorities(features)


@given(texts_of_any_kind)
@settings(deadline=None)
def test_a_text_has_the_same_code_in_any_company(texts: list[str]) -> None:
    together = simhash(texts, workers=2).tolist()
    assert together == [int(simhash([text], workers=1)[0]) for text in texts]


def test_words_of_ascii_and_of_other_texts_have_the_same_hashes() -> None:
    tokens = tokenize(["Hello, World 42", "hello — ＷＯＲＬＤ ４２ é", "e\u0301"])
    first, second, third = (
        tokens.hashes[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)
    )
    assert first == second[:3] and second[3:] == third


def test_tokens_are_words_and_single_signs() -> None:
    text = "The café's 3 rooms：北京大学 and 서울 ひらがな, end_of"
    words = re.findall(
        r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+", text
    )
    tokens = tokenize([text])
    assert len(tokens.hashes) == len(words)
    assert tokens.signs is not None
    assert tokens.signs.tolist() == [len(word) == 1 and ord(word) > 0x3000 for word in words]


def test_a_long_text_is_cut_without_changing_its_tokens() -> None:
    words = [f"word{number}" for number in range(60_000)]
    long, short = tokenize([" ".join(words)]), tokenize(words)
    assert long.hashes.tolist() == short.hashes.tolist()
    assert len(tokenize(["x" * 1_000_000]).hashes) == 4  # one word, cut at the limit


@given(st.integers(0, 12), st.integers(0, 2**32), st.integers(0, 150))
@settings(max_examples=40, deadline=None)
def test_the_search_finds_every_pair(distance: int, seed: int, count: int) -> None:
    codes = _codes_near_one_another(seed, count, distance)
    apart = np.bitwise_count(codes[:, None] ^ codes[None, :])
    earlier, later, distances = hamming_pairs(codes, distance, workers=1)
    wanted = np.nonzero(np.triu(apart <= distance, 1))
    assert set(zip(earlier.tolist(), later.tolist(), strict=True)) == set(
        zip(wanted[0].tolist(), wanted[1].tolist(), strict=True)
    )
    assert (distances == apart[earlier, later]).all()
    index = SimHashIndex(distance)
    for part in np.array_split(codes, [count // 3, count // 2]):
        index.add(part)
    stored, queried, distances = index.search(codes)
    wanted = np.nonzero(apart <= distance)
    assert set(zip(stored.tolist(), queried.tolist(), strict=True)) == set(
        zip(wanted[0].tolist(), wanted[1].tolist(), strict=True)
    )
    assert (distances == apart[stored, queried]).all()


def _codes_near_one_another(seed: int, count: int, distance: int) -> np.ndarray:
    """Return distinct codes of which many are about `distance` apart."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    for place in range(count // 2):
        code = codes[rng.integers(count)]
        for bit in rng.choice(64, rng.integers(0, distance + 3), replace=False):
            code ^= np.uint64(1) << np.uint64(bit)
        codes[place] = code
    distinct = np.unique(codes)
    return rng.permutation(distinct)


def test_texts_of_both_kinds_keep_their_order() -> None:
    texts = ["plain one", "中文", "plain two three", "", "é and 北京", "x" * 300_000 + " tail", "last"]
    together = tokenize(texts)
    for text, low, high in zip(texts, together.offsets, together.offsets[1:], strict=False):
        assert together.hashes[low:high].tolist() == tokenize([text]).hashes.tolist()


def test_equal_codes_are_paired_with_the_first() -> None:
    earlier, later, apart = hamming_pairs(np.array([5, 7, 5, 5], dtype=np.uint64), 1)
    assert list(zip(earlier, later, apart, strict=True)) == [(0, 1, 1), (0, 2, 0), (0, 3, 0)]


EN = "The committee met on Tuesday to discuss the new bridge across the river and decided to ask the town for money."
ZH = "上周我们一家三口去杭州旅游，住在西湖边的一家酒店里，房间干净，服务员也很热情，早餐的种类不少，下次还会再来。"


@pytest.mark.parametrize(
    ("text", "near", "stranger"),
    [
        (EN, EN.replace("Tuesday", "Monday"), "Rust is a systems language whose compiler checks who owns each value."),
        (
            ZH,
            ZH.replace("干净", "整洁"),
            "这个函数返回列表中最大的元素，如果列表为空则抛出异常，请在调用之前检查参数是否正确。",
        ),
        (
            ZH,
            ZH.replace("，", ","),
            "一九八四年他考上了大学，毕业以后在工厂里当工程师，一直工作到退休，从来没有离开过家乡。",
        ),
    ],
)
def test_near_copies_are_nearer_than_strangers(text: str, near: str, stranger: str) -> None:
    codes = simhash([text, near, stranger])
    assert np.bitwise_count(codes[0] ^ codes[1]) <= 12 < np.bitwise_count(codes[0] ^ codes[2])


def test_chinese_texts_do_not_collapse_into_one() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(chr(code) for code in rng.integers(0x4E00, 0x9000, 60)) for _ in range(200)]
    assert len(np.unique(simhash(texts))) == 200
    assert find_duplicates(texts).keep.all()


def test_texts_without_features_have_the_code_zero() -> None:
    assert simhash(["", "  \n", "!!! ...", "😀"]).tolist() == [0, 0, 0, 0]
    assert simhash([]).shape == (0,)
    assert simhash(["one"], NGrams(5, 5))[0] != 0  # shorter than n


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="out of range"):
        NGrams(0, 2)
    with pytest.raises(ConfigError, match="Hamming"):
        SimHashIndex(17)
    with pytest.raises(ConfigError, match="workers"):
        simhash(["a"], workers=0)
