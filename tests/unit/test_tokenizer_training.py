"""Training on samples, patterns, hostile strings, added tokens: what `Tokenizer` does beyond our plain kind."""

from __future__ import annotations

import json
import random
import re

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.pretokenize import PATTERNS
from deepseek.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from deepseek.data.tokenizer_training import sample_texts
from deepseek.errors import TokenizerError

TEXTS = [
    "The quick brown fox. It's 2024! " * 3,
    "深度学习框架把原始数据变成可以测量的服务。" * 3,
    "かなカナ 한국어 ไทย é́ 🙂👩‍👩‍👧",
]
KINDS = {pattern: Tokenizer.train(TEXTS, 320, allow_smaller=True, pattern=pattern) for pattern in PATTERNS}


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(max_size=60))
def test_every_text_comes_back_and_lone_surrogates_are_refused(pattern: str, text: str) -> None:
    tokenizer = KINDS[pattern]
    if re.search("[\ud800-\udfff]", text):
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(alphabet="a深学。，1 \n\u3000'sか\u0301🙂\u200d", max_size=80))
def test_ids_are_those_of_the_library_whatever_the_pattern(pattern: str, text: str) -> None:
    library = tokenizers.Tokenizer.from_str(KINDS[pattern].to_json())
    assert KINDS[pattern].encode(text) == library.encode(text, add_special_tokens=False).ids


def parts(pattern: str, text: str) -> list[str]:
    found = KINDS[pattern]._library.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in found]


def test_the_pattern_for_chinese_cuts_runs_of_han_characters_alone() -> None:
    assert parts("han", "abc深度学习 it's 1234") == ["abc", "深度学习", " it", "'s", " 123", "4"]
    assert [len(part) for part in parts("han", "深" * 40)] == [16, 16, 8]
    assert parts("words", "abc深度学习") == ["abc深度学习"]
    assert parts("gpt2", "深" * 99) == ["深" * 99]
    english = "The café's 12 naïve readers — they're 31415926 strong.\n\n  Yes!"
    assert parts("han", english) == parts("words", english)


HOSTILE = [
    "a",
    "深",
    " ",
    "\n",
    "1",
    "-",
    "é",
    "\u0301",
    "a\u0301",
    "👩\u200d",
    "a ",
    "深a",
    "'s",
    "\0",
    "\u3000a",
    "\t \n",
]


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("pattern", ["han", "words"])
def test_parts_of_hostile_strings_are_short_and_grow_with_the_text_alone(pattern: str, unit: str) -> None:
    counts = []
    for size in (4_000, 8_000):
        text = unit * (size // len(unit))
        found = parts(pattern, text)
        assert "".join(found) == text
        assert max(map(len, found)) <= 65
        counts.append(len(found))
    assert counts[1] <= 2 * counts[0] + 2


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything_comes_back(unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    ids = KINDS["han"].encode(text)
    assert KINDS["han"].decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(TokenizerError, match="han, words, gpt2"):
        Tokenizer.train(TEXTS, 320, allow_smaller=True, pattern="gpt5")  # type: ignore[arg-type]


def test_files_keep_their_pattern() -> None:
    for tokenizer in KINDS.values():
        assert Tokenizer(tokenizer.to_json()).encode("深" * 70) == tokenizer.encode("深" * 70)
    assert len({tokenizer.sha256 for tokenizer in KINDS.values()}) == len(KINDS)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)), st.integers(1, 60), st.integers(0, 9))
def test_a_sample_is_in_order_and_within_its_bytes(texts: list[str], size: int, seed: int) -> None:
    found = sample_texts(iter(texts), size, seed)
    assert sum(len(text.encode()) for text in found) <= size
    if sum(len(text.encode()) for text in texts) <= size:
        assert found == texts
    rest = iter(texts)
    assert all(any(other.startswith(text) for other in rest) for text in found)
    assert found == sample_texts(texts, size, seed)


def test_a_sample_is_uniform_and_depends_on_the_seed() -> None:
    texts = [f"{number:04}" for number in range(1000)]
    places = [int(text) for seed in range(20) for text in sample_texts(texts, 400, seed)]
    assert len(places) == 20 * 100
    thirds = [sum(low <= place < low + 250 for place in places) for low in range(0, 1000, 250)]
    assert all(abs(count - 500) < 90 for count in thirds)  # four standard deviations
    assert len(set(places)) > 800


def test_training_on_a_sample_says_how_far_it_is_and_is_the_same_again() -> None:
    drawn = random.Random(3)
    texts = [" ".join(drawn.choices(TEXTS[0].split(), k=2000)) for _ in range(300)]
    told: list[tuple[int, int]] = []
    first = Tokenizer.train(
        iter(texts), 300, allow_smaller=True, sample_bytes=50_000, seed=5, progress=lambda *done: told.append(done)
    )
    assert first.sha256 == Tokenizer.train(texts, 300, allow_smaller=True, sample_bytes=50_000, seed=5).sha256
    assert told[-1][0] == sum(map(len, texts)) and len(told) > 2
    assert all(kept <= 50_000 for _, kept in told)
    with pytest.raises(TokenizerError, match="sample_bytes"):
        Tokenizer.train(texts, 300, sample_bytes=0)
    with pytest.raises(TokenizerError, match="no text"):
        Tokenizer.train([], 300, sample_bytes=100)


def test_added_special_tokens_are_text_unless_they_are_allowed() -> None:
    tokenizer = KINDS["han"].with_special_tokens(["<tool>", "<tool>x", "[深]"])
    old = KINDS["han"].vocab_size
    assert tokenizer.vocab_size == old + 3
    assert {name: tokenizer.special_tokens[name] for name in ("<tool>", "[深]")} == {"<tool>": old, "[深]": old + 2}
    text = "The <tool>x [深]<|end|> fox<tool>"
    assert tokenizer.encode(text) == KINDS["han"].encode(text)
    ids = tokenizer.encode(text, allowed_special="all")
    assert [index for index in ids if index in tokenizer.special_tokens.values()] == [old + 1, old + 2, 4, old]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == "The   fox"
    ids = tokenizer.encode(text, allowed_special=["<tool>"])
    assert ids.count(old) == 2 and old + 1 not in ids
    assert Tokenizer(tokenizer.to_json()).encode(text, allowed_special="all") == tokenizer.encode(
        text, allowed_special="all"
    )
    with pytest.raises(TokenizerError, match="not a special token"):
        tokenizer.encode("x", allowed_special=["fox"])
    for token in ("", "<tool>", "a", SPECIAL_TOKENS[0]):
        with pytest.raises(TokenizerError, match="not a new special token"):
            tokenizer.with_special_tokens([token])


def other_kind(**changes: object) -> str:
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[SEP]"])
    return json.dumps({**json.loads(library.to_str()), "deepseek": {"own": False, "tokens": {}}, **changes})


def test_a_model_that_makes_special_tokens_out_of_text_is_kept_from_it() -> None:
    tokenizer = Tokenizer(other_kind())
    assert not tokenizer.lossless
    assert tokenizer.encode("a [SEP] a", allowed_special="all") == [0, 2, 0]
    assert tokenizer.encode("a [SEP] a " * 500) == [0, 1, 1, 0] * 500
    with pytest.raises(TokenizerError, match="no eos_token"):
        _ = tokenizer.eos_id
    with pytest.raises(TokenizerError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "settings",
    [{"own": 1}, {"tokens": 5}, {"tokens": {"eos_token": 1}}, {"chat_template": 5}, {"other": 1}, [], "text"],
)
def test_settings_of_another_form_are_refused(settings: object) -> None:
    with pytest.raises(TokenizerError, match="under 'deepseek'"):
        Tokenizer(other_kind(deepseek=settings))


def test_ids_beyond_all_measure_are_refused() -> None:
    content = json.loads(other_kind())
    content["model"]["vocab"]["b"] = 1 << 31
    with pytest.raises(TokenizerError, match="too large"):
        Tokenizer(json.dumps(content))
