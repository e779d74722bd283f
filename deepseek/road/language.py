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

from deepseek.bundle import Bundle, load
from deepseek.compress.config import CompressConfig
from deepseek.compress.stage import compress_bundle
from deepseek.data import Loader, Tokenizer, write_python_corpus
from deepseek.errors import ConfigError
from deepseek.evaluate.language import bigram_loss, bits_per_byte, perplexity, unigram_loss
from deepseek.export.onnx_export import OnnxConfig, export_onnx
from deepseek.models.factory import model_config
from deepseek.models.generation import stream_tokens
from deepseek.road.recipe import PYTHON_DOCS, EvaluateConfig, Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Batch
from deepseek.train.loop import take
from deepseek.train.result import TrainResult
from deepseek.train.text_data import (
    TextData,
    TextSource,
    cache_folder,
    check_vocabulary,
    prepare_text,
    train_tokenizer,
)
from deepseek.train.trainer import Trainer

logger = logging.getLogger("deepseek.road")

_MEASURED_BATCHES, _MEASURED_SEQUENCES = 32, 256


def data_stage(recipe: Recipe, run: RunFolder, *, resume: bool = False) -> TextData:
    """Gather the text, train or load the tokenizer, tokenize and pack; nothing is written into the run folder.

    With `resume`, the run's own tokenizer serves. Raises DataError or TokenizerError.
    """
    start = time.perf_counter()
    train = data_path(recipe.data.train)
    shape: Any = model_config(recipe.model)[1]
    stored = run.path / "tokenizer.json"
    if resume and stored.is_file():
        tokenizer = Tokenizer.load(stored)
    elif recipe.data.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(recipe.data.tokenizer)
    else:
        tokenizer = train_tokenizer(
            train,
            recipe.data.vocab_size or shape.vocab_size,
            on_error=recipe.train.on_error,
            allow_smaller=recipe.data.allow_smaller_vocab or recipe.data.vocab_size is None,
        )
    text = prepare_text(_source(recipe, train, shape.max_length), tokenizer)
    text.facts |= {"source": recipe.data.train, "seconds": time.perf_counter() - start}
    return text


def train_stage(recipe: Recipe, run: RunFolder, text: TextData, *, resume: bool = False) -> bool:
    """Train the model, write checkpoints and the bundle, record the numbers; return whether it was interrupted.

    An interrupted run leaves no new bundle. Raises as `Trainer.train` does.
    """
    config: Any = model_config(recipe.model)[1]
    if "vocab_size" not in recipe.model:
        config = config.replace(vocab_size=text.tokenizer.vocab_size)
    trainer = Trainer(
        model_config=config,
        train_dataset=text.train,
        val_dataset=text.val,
        tokenizer=text.tokenizer,
        output_dir=run.path,
        **{name: getattr(recipe.train, name) for name in recipe.train.model_fields_set},
    )
    check_vocabulary(text.tokenizer, config.vocab_size)
    result = trainer.train(resume=resume)
    model = _model_of(trainer)
    parameters = sum(p.numel() for p in model.parameters())
    run.record("model", {"name": type(model).__name__, "parameters": parameters, "config": config.to_dict()})
    run.record("train", _train_numbers(result, run))
    return result.interrupted


def _train_numbers(result: TrainResult, run: RunFolder) -> dict[str, Any]:
    """Return the numbers of the whole training: a resumed run's metrics go on counting, its result begins anew."""
    logged = run.last_metrics("loss")
    tokens = max(result.items, int(logged.get("tokens") or 0))
    seconds = max(result.seconds, float(logged.get("seconds") or 0.0))
    return {
        "steps": result.steps,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "train_loss": float(np.mean(result.losses[-20:])) if result.losses else logged.get("loss"),
        "val_loss": result.val_loss,
        "precision": result.precision,
        "compiled": result.compiled,
        "compile_reason": result.compile_reason,
        "compile_seconds": result.compile_seconds,
        "device": result.device,
        "interrupted": result.interrupted,
    }


def evaluate_stage(bundle: Bundle, text: TextData, config: EvaluateConfig, run: RunFolder | None) -> dict[str, Any]:
    """Measure the model on the validation text, beside unigram and bigram models of the training text where there are
    both; with `run`, record it and samples."""
    batches = validation_batches(text)
    numbers: dict[str, Any] = dict(perplexity(bundle.model, batches, LanguageModeling(), device_of(bundle.model)))
    held_out = tokens_of(text.val or text.train)
    if text.val is not None:
        train, vocab_size = tokens_of(text.train), text.tokenizer.vocab_size
        numbers["unigram_loss"] = unigram_loss(train, held_out, vocab_size)
        numbers["bigram_loss"] = bigram_loss(train, held_out, vocab_size)
    num_bytes = int(text.tokenizer.byte_lengths[held_out].sum())
    numbers["bits_per_byte"] = bits_per_byte(numbers["val_loss"], len(held_out), num_bytes)
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
    run.record("export", export_onnx(bundle.model, run.onnx, config=config).to_dict())
    return run.onnx


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
    """Return up to 32 batches of validation text (of training text where there is no other), always the same.

    Small batches are as many as make 256 sequences.
    """
    stream = text.val or text.train
    return list(take(stream, max(_MEASURED_BATCHES, _MEASURED_SEQUENCES // stream.batch_size)))


def tokens_of(loader: Loader) -> np.ndarray[Any, Any]:
    """Return the token ids of the first 2,000 batches, one after the other."""
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
    return [tokenizer.decode(ids).strip(" \n\ufffd") for ids in picked]  # the mark stands for half a character


def _source(recipe: Recipe, train: Path, max_length: int) -> TextSource:
    config = recipe.train
    return TextSource(
        train,
        data_path(recipe.data.val) if recipe.data.val is not None else None,
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
