"""Training and reading on public text: tinyshakespeare, OCNLI and GSM8K."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek.data import Tokenizer, read_documents
from deepseek.errors import DataError, TokenizerError
from deepseek.evaluate import bigram_loss, unigram_loss
from deepseek.models.gpt import GPTConfig
from deepseek.train import Trainer
from deepseek.train.text_data import train_tokenizer

pytestmark = pytest.mark.realdata


def test_a_small_gpt_learns_shakespeare(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "text" / "tinyshakespeare" / "input.txt"
    text = tmp_path / "play.txt"  # a tenth of it: the tokenizer is quick and the steps are few
    text.write_text(source.read_text(encoding="utf-8")[:110_000], encoding="utf-8")
    trainer = Trainer(
        model_config=GPTConfig(vocab_size=512, max_length=64, num_layers=2, d_model=64, num_heads=2),
        train_dataset=text,
        batch_size=8,
        learning_rate=5e-3,
        output_dir=tmp_path / "run",
        max_steps=350,
        compile=False,
        tensorboard=False,
    )
    result = trainer.train()
    assert result.losses[0] == pytest.approx(math.log(512), abs=0.3)
    data = trainer.text
    assert data is not None and data.val is not None and result.val_loss is not None
    train = np.concatenate([batch["input_ids"].flatten() for batch in islice(data.train.iterate(0), len(data.train))])
    val = np.concatenate([batch["input_ids"].flatten() for batch in islice(data.val.iterate(0), len(data.val))])
    assert result.val_loss < unigram_loss(train, val, 512) - 0.5
    assert trainer.tokenizer is not None and trainer.model is not None
    ids = torch.tensor([trainer.tokenizer.encode("ROMEO:")]).repeat(16, 1)
    said = trainer.model.generate(ids, do_sample=True, top_k=20, seed=0, max_new_tokens=40)  # type: ignore[operator]
    assert all(trainer.tokenizer.decode(row).startswith("ROMEO:") for row in said.tolist())
    chance = np.random.default_rng(0).choice(train, said.numel())  # what it says follows the play's pairs of tokens
    assert bigram_loss(train, said.flatten().numpy(), 512) < bigram_loss(train, chance, 512) - 0.5


def test_the_whole_of_shakespeare_survives_a_tokenizer(real_data: Path) -> None:
    text = (real_data / "text" / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text[:200_000]], 1000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["ocnli", "gsm8k"])
def test_records_of_other_forms_are_refused_with_the_forms_that_are_read(real_data: Path, name: str) -> None:
    path = real_data / "text" / name / "train.jsonl"
    with pytest.raises(DataError) as caught:
        next(iter(read_documents(path)))
    message = str(caught.value)
    assert f"{path}:1" in message
    assert all(form in message for form in ("text", "prompt", "response", "messages")), message
    with pytest.raises(DataError, match="holds no document"):
        list(read_documents(path, on_error="skip"))


def test_chinese_pairs_and_worked_answers_train_once_they_are_in_our_forms(real_data: Path, tmp_path: Path) -> None:
    pairs = (real_data / "text" / "ocnli" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    problems = (real_data / "text" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    folder = tmp_path / "data"
    folder.mkdir()
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for line in pairs:
            pair = json.loads(line)
            file.write(json.dumps({"text": f"{pair['sentence1']} {pair['sentence2']}"}, ensure_ascii=False) + "\n")
    with open(folder / "problems.jsonl", "w", encoding="utf-8") as file:
        for line in problems:
            problem = json.loads(line)
            file.write(json.dumps({"prompt": problem["question"], "response": problem["answer"]}) + "\n")
    documents = list(read_documents(folder))
    assert len(documents) == 400 and sum(document.messages is not None for document in documents) == 100
    tokenizer = train_tokenizer(folder, 600, on_error="raise", allow_smaller=False)
    for document in documents[:50]:
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text
    trainer = Trainer(
        model_config=GPTConfig(vocab_size=600, max_length=64, num_layers=1, d_model=32),
        train_dataset=folder,
        tokenizer=tokenizer,
        batch_size=8,
        learning_rate=1e-2,
        output_dir=tmp_path / "run",
        isolate_documents=True,
        max_steps=25,
        compile=False,
        tensorboard=False,
    )
    result = trainer.train()
    assert np.mean(result.losses[-5:]) < result.losses[0] - 0.7
    with pytest.raises(TokenizerError, match="set vocab_size to"):
        train_tokenizer(folder, 60_000, on_error="raise", allow_smaller=False)
