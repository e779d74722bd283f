"""The stages of the road for a language model: each takes a run and leaves its part in the run folder."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deepseek.bundle import Bundle, load, save
from deepseek.compress.config import CompressConfig
from deepseek.compress.stage import compress_bundle
from deepseek.data import Tokenizer, write_python_corpus
from deepseek.data.packing import PackedDataset
from deepseek.errors import ConfigError
from deepseek.evaluate.language import bigram_loss, bits_per_byte, perplexity, unigram_loss
from deepseek.export.onnx_export import OnnxConfig, export_onnx
from deepseek.models.build import model_config
from deepseek.models.generation import stream_tokens
from deepseek.road.recipe import PYTHON_DOCS, EvaluateConfig, Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Batch
from deepseek.train.loop import take
from deepseek.train.text_data import TextData, TextSource, cache_folder, prepare_text, train_tokenizer
from deepseek.train.trainer import Trainer

logger = logging.getLogger("deepseek.road")

_MEASURED_BATCHES = 32


def data_stage(recipe: Recipe, run: RunFolder) -> TextData:
    """Gather the text, train or load the tokenizer, tokenize and pack; record the facts."""
    start = time.perf_counter()
    train = data_path(recipe.data.train)
    shape: Any = model_config(recipe.model)[1]
    stored = run.path / "tokenizer.json"
    if stored.is_file():
        tokenizer = Tokenizer.load(stored)
    elif recipe.data.tokenizer is not None:
        tokenizer = Tokenizer.load(recipe.data.tokenizer)
    else:
        vocab_size = recipe.data.vocab_size or shape.vocab_size
        tokenizer = train_tokenizer(
            train,
            vocab_size,
            on_error=recipe.train.on_error,
            allow_smaller=recipe.data.allow_smaller_vocab or recipe.data.vocab_size is None,
        )
    tokenizer.save(stored)
    text = prepare_text(_source(recipe, train, shape.max_length), tokenizer)
    run.record("data", {**text.facts, "source": recipe.data.train, "seconds": time.perf_counter() - start})
    return text


def train_stage(recipe: Recipe, run: RunFolder, text: TextData, *, resume: bool = False) -> Trainer:
    """Train the model and write the bundle; record the numbers. An interrupted run leaves no bundle."""
    config: Any = model_config(recipe.model)[1]
    if text.tokenizer.vocab_size > config.vocab_size or "vocab_size" not in recipe.model:
        config = config.replace(vocab_size=text.tokenizer.vocab_size)
    trainer = Trainer(
        model_config=config,
        train_dataset=text.train,
        val_dataset=text.val,
        tokenizer=text.tokenizer,
        output_dir=run.path,
        **{name: getattr(recipe.train, name) for name in recipe.train.model_fields_set},
    )
    result = trainer.train(resume=resume)
    model = _model_of(trainer)
    parameters = sum(p.numel() for p in model.parameters())
    run.record("model", {"name": type(model).__name__, "parameters": parameters, "config": config.to_dict()})
    run.record(
        "train",
        {
            "steps": result.steps,
            "tokens": result.items,
            "seconds": result.seconds,
            "tokens_per_second": result.items_per_second,
            "train_loss": float(np.mean(result.losses[-20:])) if result.losses else None,
            "val_loss": result.val_loss,
            "precision": result.precision,
            "compiled": result.compiled,
            "compile_reason": result.compile_reason,
            "compile_seconds": result.compile_seconds,
            "device": result.device,
            "interrupted": result.interrupted,
        },
    )
    if not result.interrupted:
        save(model, run.bundle, tokenizer=text.tokenizer)
    return trainer


def evaluate_stage(bundle: Bundle, text: TextData, config: EvaluateConfig, run: RunFolder | None) -> dict[str, Any]:
    """Measure the model on the validation text beside unigram and bigram models; with `run`, record it and samples."""
    batches = validation_batches(text)
    numbers: dict[str, Any] = dict(perplexity(bundle.model, batches, LanguageModeling(), device_of(bundle.model)))
    if text.val is not None and isinstance(text.val.dataset, PackedDataset):
        train_ids, val_ids = split_tokens(text, "train"), split_tokens(text, "val")
        vocab_size = text.tokenizer.vocab_size
        numbers["unigram_loss"] = unigram_loss(train_ids, val_ids, vocab_size)
        numbers["bigram_loss"] = bigram_loss(train_ids, val_ids, vocab_size)
        num_bytes = int(text.tokenizer.byte_lengths[val_ids].sum())
        numbers["bits_per_byte"] = bits_per_byte(numbers["val_loss"], len(val_ids), num_bytes)
    if run is None:
        return numbers
    run.record("evaluate", numbers)
    prompts = config.prompts if config.prompts is not None else _beginnings(batches, text.tokenizer)
    run.record("samples", [{"prompt": prompt, "text": sample(bundle, prompt, config)} for prompt in prompts])
    return numbers


def compress_stage(bundle_path: Path, out: Path, text: TextData, config: CompressConfig, run: RunFolder) -> None:
    """Quantize the bundle, measure each form, write the new bundle; record the table."""
    report = compress_bundle(bundle_path, out, validation_batches(text), config=config)
    run.record("compress", report.to_dict())


def export_stage(bundle: Bundle, config: OnnxConfig, run: RunFolder) -> Path:
    """Write `exports/model.onnx` into the bundle, checked by running it; record the checks."""
    path = bundle.path / "exports" / "model.onnx"
    run.record("export", export_onnx(bundle.model, path, config=config).to_dict())
    return path


def sample(bundle: Bundle, prompt: str, config: EvaluateConfig) -> str:
    """Return the prompt and what the model says after it."""
    if bundle.tokenizer is None:
        raise ConfigError("the bundle has no tokenizer", fix="save it with ds.save(model, path, tokenizer=tokenizer)")
    tokenizer = bundle.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
    limit = int(getattr(bundle.model.config, "max_length", 1024))
    room = max(1, min(config.sampling.max_new_tokens, limit - len(ids)))
    sampling = config.sampling.replace(max_new_tokens=room, eos_id=tokenizer.eos_id)
    return prompt + tokenizer.decode(list(stream_tokens(bundle.model, ids, sampling)))


def text_for(recipe: Recipe, tokenizer: Tokenizer) -> TextData:
    """Return the recipe's text for a tokenizer that exists already: the cache of the training run serves."""
    shape: Any = model_config(recipe.model)[1]
    return prepare_text(_source(recipe, data_path(recipe.data.train), shape.max_length), tokenizer)


def open_bundle(path: Path) -> Bundle:
    """Load a bundle on the CPU or GPU. Raises BundleError."""
    return load(path)


def validation_batches(text: TextData) -> list[Batch]:
    """Return up to 32 batches of validation text (of training text where there is no other), always the same."""
    stream = text.val or text.train
    return list(take(stream, _MEASURED_BATCHES))


def split_tokens(text: TextData, split: str) -> np.ndarray[Any, Any]:
    """Return the token ids of a split, in the order of the validation batches; training falls back on all tokens."""
    loader = text.train if split == "train" or text.val is None else text.val
    return np.concatenate([batch["input_ids"].flatten().numpy() for batch in take(loader, 2000)])


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    device: torch.device = next(iter(model.state_dict().values())).device
    return device


def data_path(name: str) -> Path:
    """Return the path of training text; the text that comes with Python is gathered into the cache first."""
    if name != PYTHON_DOCS:
        return Path(name)
    path = cache_folder() / "python-docs.jsonl"
    if not path.is_file() or os.path.getsize(path) == 0:
        logger.info("gathering the documentation that comes with Python")
        write_python_corpus(path)
    return path


def _beginnings(batches: list[Batch], tokenizer: Tokenizer) -> list[str]:
    """Return the first few tokens of three sequences of the text."""
    rows = torch.cat([batch["input_ids"] for batch in batches])
    picked = rows[torch.linspace(0, len(rows) - 1, 3).long(), :6].tolist()
    return [tokenizer.decode(ids).strip() + " " for ids in picked]


def _source(recipe: Recipe, train: Path, max_length: int) -> TextSource:
    config = recipe.train
    return TextSource(
        train,
        recipe.data.val,
        max_length,
        config.batch_size,
        config.seed,
        config.val_fraction,
        config.isolate_documents,
        config.on_error,
    )


def _model_of(trainer: Trainer) -> nn.Module:
    if trainer.model is None:
        raise ConfigError("the trainer has no model")
    return trainer.model
