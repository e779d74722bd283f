"""The tokenizer on public text: what Chinese costs, round trips, and chats from dialogues."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from deepseek.data import PackedDataset, Tokenizer, build_token_cache

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def texts(real_data: Path) -> list[str]:
    """Return Chinese hotel reviews and English problems with answers, a part of both."""
    with open(
        real_data / "text" / "chnsenticorp" / "ChnSentiCorp_htl_all.csv", encoding="utf-8-sig", newline=""
    ) as file:
        reviews = [row["review"] for row in csv.DictReader(file) if row["review"]]
    rows = (real_data / "text" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return reviews[::3] + ["{question}\n{answer}".format(**json.loads(row)) for row in rows[::3]]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts[::2], 8192, sample_bytes=800_000)


def test_real_text_comes_back_and_takes_less_than_a_token_a_character(texts: list[str], tokenizer: Tokenizer) -> None:
    held_out = texts[1::2]
    encoded = tokenizer.encode_batch(held_out)
    assert [tokenizer.decode(ids) for ids in encoded] == held_out
    chinese = [place for place, text in enumerate(held_out) if not text.isascii() and "Answer" not in text][:800]
    size = sum(len(held_out[place].encode()) for place in chinese)
    assert size / sum(len(encoded[place]) for place in chinese) > 3.0  # bytes a token; a Han character has three


def test_tokens_of_the_pattern_for_chinese_are_no_whole_clauses(texts: list[str], tokenizer: Tokenizer) -> None:
    longest = {
        pattern: max(
            len(token.decode("utf-8", "ignore"))
            for token in (made.token_bytes(index) for index in range(made.vocab_size))
            if not token.isascii()
        )
        for pattern, made in (("han", tokenizer), ("words", Tokenizer.train(texts[::4], 8192, pattern="words")))
    }
    assert longest["han"] <= 17
    assert longest["words"] >= longest["han"]


def test_dialogues_become_chats_whose_answers_are_learned(
    real_data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dialogues = json.loads((real_data / "dialog" / "kdconv_travel" / "dev.json").read_text(encoding="utf-8"))[:60]
    source = tmp_path / "chats.jsonl"
    answers = 0
    with open(source, "w", encoding="utf-8") as file:
        for dialogue in dialogues:
            turns = [turn["message"] for turn in dialogue["messages"]]
            roles = ["user", "assistant"] * len(turns)
            messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
            answers += sum(len(message["content"].encode()) for message in messages if message["role"] == "assistant")
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    cache = build_token_cache(source, tokenizer, tmp_path / "cache")
    assert cache.num_documents == len(dialogues) and cache.loss_mask is not None
    assert int(tokenizer.byte_lengths[cache.tokens[cache.loss_mask == 1]].sum()) == answers
    batch = PackedDataset(cache, 128).get_batch(0, np.arange(4))
    assert (batch["labels"] == -100).any() and (batch["labels"] >= 0).any()
