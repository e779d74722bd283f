"""The stage that hides tokens, and the words it may hide whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from deepseek.data.masking import MaskTokens
from deepseek.data.pipeline import Pipeline
from deepseek.data.tokenizer import Tokenizer
from deepseek.data.words import Lexicon, Piece, word_numbers
from deepseek.errors import ConfigError, DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"深度学习很好玩", "play", "##ing", "##s", "the", "dog", "."]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a WordPiece tokenizer in the Hugging Face layout, with [CLS] and [SEP]."""
    library = tokenizers.Tokenizer(models.WordPiece(dict(zip(WORDS, range(99), strict=False)), unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens(WORDS[:5])
    folder = tmp_path_factory.mktemp("wordpiece")
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]", "pad_token": "[PAD]"}))
    return str(folder)


def ids_of(*words: str) -> torch.Tensor:
    return torch.tensor([WORDS.index(word) for word in words])


def test_a_share_of_the_tokens_is_hidden_and_special_ones_never(path: str) -> None:
    ids = torch.cat([ids_of("[CLS]"), torch.randint(5, len(WORDS), (100,)), ids_of("[SEP]")])
    done = MaskTokens(path, share=0.2).apply({"input_ids": ids}, np.random.default_rng(0))
    hidden = done["labels"] != -100
    assert int(hidden.sum()) == 20 and not hidden[0] and not hidden[-1]
    assert torch.equal(done["labels"][hidden], ids[hidden])
    assert torch.equal(done["input_ids"][~hidden], ids[~hidden])


def test_eighty_ten_ten_by_chance(path: str) -> None:
    ids, counts = torch.full((1000,), WORDS.index("dog")), [0, 0, 0]
    for seed in range(20):
        done = MaskTokens(path).apply({"input_ids": ids}, np.random.default_rng(seed))
        seen = done["input_ids"][done["labels"] != -100]
        masked, kept = int((seen == WORDS.index("[MASK]")).sum()), int((seen == WORDS.index("dog")).sum())
        counts = [a + b for a, b in zip(counts, (masked, len(seen) - masked - kept, kept), strict=True)]
        assert not bool(((seen < 5) & (seen != WORDS.index("[MASK]"))).any())  # a random token is no special one
    total = sum(counts)
    assert total == 20 * 150
    assert counts[0] / total == pytest.approx(0.8, abs=0.03)
    assert counts[1] / total == pytest.approx(0.1 * (1 - 1 / (len(WORDS) - 5)), abs=0.03)


def test_places_have_a_fixed_number(path: str) -> None:
    short = {"input_ids": ids_of("the", "dog", "play", "##s")}
    done = MaskTokens(path, share=0.5, max_hidden=4).apply(short, np.random.default_rng(1))
    assert done["masked_positions"].shape == done["labels"].shape == (4,)
    known = done["labels"] != -100
    assert known.tolist() == [True, True, False, False]
    assert torch.equal(short["input_ids"][done["masked_positions"][known]], done["labels"][known])
    long = {"input_ids": torch.full((100,), 5)}
    done = MaskTokens(path, share=0.5, max_hidden=4).apply(long, np.random.default_rng(1))
    assert bool((done["labels"] == 5).all()) and len(set(done["masked_positions"].tolist())) == 4


def test_the_mask_depends_on_seed_epoch_and_index_alone(path: str) -> None:
    samples = [{"input_ids": torch.full((50,), 8), "index": index, "epoch": 0} for index in range(4)]
    pipeline = Pipeline([MaskTokens(path, max_hidden=8)], seed=3)
    first, again = pipeline(samples), pipeline(samples)
    assert torch.equal(first["masked_positions"], again["masked_positions"])
    assert len({tuple(row) for row in first["masked_positions"].tolist()}) == 4
    assert torch.equal(pipeline(samples[2:])["masked_positions"], first["masked_positions"][2:])
    later = pipeline([{**sample, "epoch": 1} for sample in samples])
    assert not torch.equal(later["masked_positions"], first["masked_positions"])


def test_whole_words_are_hidden_together(path: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("深度 100 n\n学习\n好玩\n", encoding="utf-8")
    ids = ids_of("[CLS]", *"深度学习很好玩", "play", "##ing", ".", "[SEP]")
    words = [{1, 2}, {3, 4}, {5}, {6, 7}, {8, 9}, {10}]
    stage = MaskTokens(path, share=0.3, whole_words=True, word_list=str(tmp_path / "words.txt"))
    seen = set()
    for seed in range(30):
        labels = stage.apply({"input_ids": ids}, np.random.default_rng(seed))["labels"]
        hidden = {place for place, label in enumerate(labels.tolist()) if label != -100}
        assert len(hidden) in (2, 3)  # 0.3 of ten, one less where only words of two are left
        parts = [frozenset(word) for word in words if word <= hidden]
        assert set().union(*parts) == hidden
        seen |= set(parts)
    assert seen == {frozenset(word) for word in words}


def test_without_a_list_each_character_is_a_word(path: str) -> None:
    stage = MaskTokens(path, share=0.01, whole_words=True)
    ids = ids_of(*"深度学习")
    for seed in range(5):
        assert int((stage.apply({"input_ids": ids}, np.random.default_rng(seed))["labels"] != -100).sum()) == 1


def test_words_of_tokens_that_carry_their_spaces() -> None:
    texts = ["the", " qu", "ick ", "深", "度学", "习", " fox", "."]
    numbers = word_numbers([Piece(text.encode(), True) for text in texts], Lexicon(["深度", "学习"]))
    assert numbers == [0, 1, 1, 2, 2, 3, 4, 5]  # a token over two words belongs to the first
    tokenizer = Tokenizer.train(["the quick brown fox likes very much " * 3], 280, allow_smaller=True)
    ids = tokenizer.encode("the quick fox, the fox")
    found: dict[int, str] = {}
    for number, index in zip(
        word_numbers([Piece(tokenizer.token_bytes(i), True) for i in ids], Lexicon()), ids, strict=True
    ):
        found[number] = found.get(number, "") + tokenizer.token_bytes(index).decode()
    assert [word.strip() for number, word in found.items() if number >= 0] == ["the", "quick", "fox", ",", "the", "fox"]


def test_the_longest_known_words_are_taken() -> None:
    lexicon = Lexicon(["中国", "中国人", "人民", "银行"])
    assert list(lexicon.cut("中国人民银行在")) == ["中国人", "民", "银行", "在"]
    broken = [Piece("深".encode()[:2], True), Piece("深".encode()[2:], True), None, Piece(b"a", True)]
    assert word_numbers(broken, lexicon) == [0, 0, -1, 1]
    assert word_numbers([Piece(b"\xff", True), Piece(b" ", True)], lexicon) == [0, -1]


def test_what_does_not_fit_is_refused(path: str, tmp_path: Path) -> None:
    for settings in ({"share": 0.0}, {"mask_share": 0.9, "random_share": 0.2}, {"max_hidden": 0}, {"word_list": "x"}):
        with pytest.raises(ConfigError):
            MaskTokens(path, **settings)
    with pytest.raises(ConfigError, match="no mask token"):
        MaskTokens(path, mask_token="[HIDE]").apply({"input_ids": ids_of("dog")}, np.random.default_rng(0))
    with pytest.raises(DataError, match="no token to hide"):
        MaskTokens(path).apply({"input_ids": ids_of("[CLS]", "[SEP]")}, np.random.default_rng(0))
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(ConfigError, match="word list"):
            Lexicon.read(tmp_path / name)
