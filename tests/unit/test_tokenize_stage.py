"""The stage `Tokenize`: texts and chats to ids and labels in a pipeline."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek.data.pipeline import Pipeline
from deepseek.data.tokenize import Tokenize
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import ConfigError, DataError

TOKENIZER = Tokenizer.train(["The quick brown fox. 深度学习 " * 4], 300, allow_smaller=True)
CHAT = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "quick"}]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder / "tokenizer.json")
    return str(folder / "tokenizer.json")


def test_a_text_becomes_its_ids(path: str) -> None:
    sample = {"text": "The fox <|end|>", "index": 0}
    done = Tokenize(path).apply(sample, RNG)
    assert done["input_ids"].dtype == torch.int64
    assert done["input_ids"].tolist() == TOKENIZER.encode("The fox <|end|>")
    assert list(sample) == ["text", "index"]
    assert Tokenize(str(Path(path).parent)).apply(sample, RNG)["input_ids"].equal(done["input_ids"])
    ended = Tokenize(path, add_eos=True).apply(sample, RNG)["input_ids"].tolist()
    assert ended == [*TOKENIZER.encode("The fox <|end|>"), TOKENIZER.eos_id]


@pytest.mark.parametrize(("truncation", "kept"), [("right", slice(0, 3)), ("left", slice(-3, None))])
def test_a_long_text_is_cut(path: str, truncation: str, kept: slice) -> None:
    done = Tokenize(path, max_length=3, truncation=truncation).apply({"text": "The quick brown 深"}, RNG)
    assert done["input_ids"].tolist() == TOKENIZER.encode("The quick brown 深")[kept]
    labelled = Tokenize(path, max_length=3, truncation=truncation, labels=True).apply({"text": "a b c d e f"}, RNG)
    assert (len(labelled["input_ids"]), len(labelled["labels"])) == (3, 3)
    with pytest.raises(DataError, match="at most 3"):
        Tokenize(path, max_length=3, truncation="error").apply({"text": "The quick brown 深"}, RNG)


def test_labels_are_the_next_tokens_and_in_chats_the_answers_alone(path: str) -> None:
    stage = Tokenize(path, labels=True, add_eos=True)
    text = stage.apply({"text": "The fox"}, RNG)
    ids = [*TOKENIZER.encode("The fox"), TOKENIZER.eos_id]
    assert (text["input_ids"].tolist(), text["labels"].tolist()) == (ids[:-1], ids[1:])
    chat = stage.apply({"text": "", "messages": CHAT}, RNG)
    learned = [index for index in chat["labels"].tolist() if index != -100]
    assert learned == [*TOKENIZER.encode("quick"), TOKENIZER.end_id]
    assert Tokenize(path).apply({"text": "", "messages": CHAT}, RNG)["input_ids"].tolist() == TOKENIZER.encode_chat(
        CHAT, False
    )
    with pytest.raises(DataError, match="too short"):
        Tokenize(path, labels=True).apply({"text": ""}, RNG)


def test_texts_and_chats_make_a_batch_and_the_stage_is_yaml(path: str) -> None:
    pipeline = Pipeline.from_config(Pipeline([Tokenize(path, max_length=8, labels=True)]).to_config())
    batch = pickle.loads(pickle.dumps(pipeline))([{"text": "The fox"}, {"text": "", "messages": CHAT}])  # noqa: S301
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert (batch["labels"][0] == -100).any() and sorted(batch) == ["attention_mask", "index", "input_ids", "labels"]
    with pytest.raises(DataError, match=r"(?s)Tokenize failed on sample 1.*surrogate"):
        pipeline([{"text": "a fox"}, {"text": "\ud800"}])


def test_wrong_settings_are_refused(path: str, tmp_path: Path) -> None:
    for wrong in ({"tokenizer": ""}, {"tokenizer": 5}, {"max_length": 0}, {"truncation": "middle"}):
        with pytest.raises(ConfigError):
            Tokenize(**{"tokenizer": path, **wrong})
    with pytest.raises(ConfigError, match="can't read"):
        Tokenize(str(tmp_path / "none.json")).apply({"text": "a"}, RNG)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="bad.json"):
        Tokenize(str(tmp_path / "bad.json")).apply({"text": "a"}, RNG)


def test_a_tokenizer_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    stage = Tokenize(str(path))
    before = stage.apply({"text": "brown"}, RNG)["input_ids"]
    Tokenizer.train(["x"], 261).save(path)
    assert len(stage.apply({"text": "brown"}, RNG)["input_ids"]) == 5 > len(before)
