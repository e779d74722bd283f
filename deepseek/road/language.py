"""The stages of the road for a language model: each takes a run and leaves its part in the run folder."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepseek.bundle import Bundle
from deepseek.compress.config import CompressConfig
from deepseek.compress.search.either import compressed
from deepseek.data import Loader, Tokenizer, write_python_corpus
from deepseek.errors import ConfigError
from deepseek.evaluate.language import bigram_loss, bits_per_byte, perplexity, unigram_loss
from deepseek.export.onnx_export import OnnxConfig, export_onnx
from deepseek.models.factory import model_config
from deepseek.models.generation import stream_tokens
from deepseek.road.recipe import PYTHON_DOCS, DataConfig, EvaluateConfig, Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.training import device_of, given_settings, record_training
from deepseek.tasks.build import build_task
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Batch
from deepseek.train.config import TrainConfig
from deepseek.train.loop import take
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


class LanguageStages:
    """The stages of a language model."""

    evaluated = ("evaluate", "samples")

    def check(self, recipe: Recipe) -> None:
        """Language models have every stage."""

    def data_stage(self, recipe: Recipe, run: RunFolder, *, resume: bool = False) -> TextData:
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

    def data_of(self, recipe: Recipe, bundle: Bundle) -> TextData:
        """Return the recipe's text for a tokenizer that exists already: the cache of the training run serves."""
        shape: Any = model_config(recipe.model)[1]
        return prepare_text(_source(recipe, data_path(recipe.data.train), shape.max_length), _tokenizer_of(bundle))

    def foreign_data(self, bundle: Bundle, path: str, recipe: Recipe | None) -> TextData:
        """Return all the text at `path`."""
        whole = TrainConfig(val_fraction=0.0, batch_size=1)
        return self.data_of(Recipe(data=DataConfig(train=path), model=bundle.config.model, train=whole), bundle)

    def train_stage(self, recipe: Recipe, run: RunFolder, data: TextData, *, resume: bool = False) -> bool:
        """Train the model, write checkpoints and the bundle, record the numbers; return whether it was interrupted.

        An interrupted run leaves no new bundle. Raises as `Trainer.train` does.
        """
        config: Any = model_config(recipe.model)[1]
        if "vocab_size" not in recipe.model:
            config = config.replace(vocab_size=data.tokenizer.vocab_size)
        trainer = Trainer(
            model_config=config,
            train_dataset=data.train,
            val_dataset=data.val,
            task=build_task(recipe.task),
            tokenizer=data.tokenizer,
            output_dir=run.path,
            **given_settings(recipe),
        )
        check_vocabulary(data.tokenizer, config.vocab_size)
        result = trainer.train(resume=resume)
        record_training(run, trainer, result)
        return result.interrupted

    def evaluate_stage(
        self, bundle: Bundle, data: TextData, config: EvaluateConfig, run: RunFolder | None
    ) -> dict[str, Any]:
        """Measure the model on the validation text, beside unigram and bigram models of the training text where there
        are both; with `run`, record it and samples."""
        batches = validation_batches(data)
        numbers: dict[str, Any] = dict(perplexity(bundle.model, batches, LanguageModeling(), device_of(bundle.model)))
        held_out = tokens_of(data.val or data.train)
        if data.val is not None:
            train, vocab_size = tokens_of(data.train), data.tokenizer.vocab_size
            numbers["unigram_loss"] = unigram_loss(train, held_out, vocab_size)
            numbers["bigram_loss"] = bigram_loss(train, held_out, vocab_size)
        num_bytes = int(data.tokenizer.byte_lengths[held_out].sum())
        numbers["bits_per_byte"] = bits_per_byte(numbers["val_loss"], len(held_out), num_bytes)
        if run is None:
            return numbers
        run.record("evaluate", numbers)
        prompts = config.prompts if config.prompts is not None else _beginnings(batches, data.tokenizer)
        run.record("samples", [{"prompt": prompt, "text": sample(bundle, prompt, config)} for prompt in prompts])
        return numbers

    def compress_stage(
        self, bundle: Path, out: Path, data: TextData, config: CompressConfig, say: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Write the bundle in a smaller form, measured on validation text; return the table of its forms."""
        batches = validation_batches(data)[: config.max_batches]
        if data.val is None:  # other text is only measured on
            return compressed(bundle, out, batches, config, say=say)
        seen = list(take(data.train, config.calibration_batches))
        return compressed(bundle, out, batches, config, calibration_data=seen, train_data=data.train, say=say)

    def export_stage(self, bundle: Bundle, path: Path, config: OnnxConfig) -> dict[str, Any]:
        """Write the ONNX file, checked by running it; return the checks."""
        return export_onnx(bundle.model, path, config=config).to_dict()

    def data_line(self, facts: dict[str, Any]) -> str:
        """Return how much text there is."""
        return (
            f"  {facts['documents']:,} documents, {facts['characters']:,} characters, "
            f"vocabulary {facts['vocab_size']:,}; "
            f"{facts['train_tokens']:,} tokens to train, {facts['val_tokens']:,} to validate"
        )

    def train_line(self, results: dict[str, Any]) -> str:
        """Return size, steps, speed and loss."""
        train = results["train"]
        how = "compiled" if train["compiled"] else "eager"
        val = f", validation loss {train['val_loss']:.3f}" if train["val_loss"] is not None else ""
        return (
            f"  {results['model']['parameters'] / 1e6:.1f}M parameters, {train['steps']:,} steps, "
            f"{train['tokens']:,} tokens"
            f" at {train['tokens_per_second']:,.0f} tokens/s ({train['precision']}, {how}){val}"
        )

    def evaluate_line(self, numbers: dict[str, Any]) -> str:
        """Return the loss beside that of models that only count."""
        line = f"  validation loss {numbers['val_loss']:.3f} (perplexity {numbers['perplexity']:.1f})"
        if "bigram_loss" in numbers:
            line += f"; a bigram model: {numbers['bigram_loss']:.3f}, a unigram model: {numbers['unigram_loss']:.3f}"
        return line

    def next_steps(self, run: RunFolder) -> list[tuple[str, str]]:
        """Return the command that serves the smallest bundle."""
        bundle = run.compressed if run.compressed.exists() else run.bundle
        return [("serve", f"deepseek serve {shlex.quote(str(bundle))}")]


def _tokenizer_of(bundle: Bundle) -> Tokenizer:
    if bundle.tokenizer is None:
        raise ConfigError(
            f"{bundle.path} has no tokenizer",
            wanted="a bundle of a language model",
            fix="save it with ds.save(model, path, tokenizer=tokenizer)",
        )
    return bundle.tokenizer


def sample(bundle: Bundle, prompt: str, config: EvaluateConfig) -> str:
    """Return the prompt and what the model says after it."""
    tokenizer = _tokenizer_of(bundle)
    ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
    limit = int(getattr(bundle.model.config, "max_length", 1024))
    room = max(1, min(config.sampling.max_new_tokens, limit - len(ids)))
    sampling = config.sampling.replace(max_new_tokens=room, eos_id=tokenizer.eos_id)
    return prompt + tokenizer.decode(list(stream_tokens(bundle.model, ids, sampling)))


def validation_batches(text: TextData) -> list[Batch]:
    """Return up to 32 batches of validation text (of training text where there is no other), always the same.

    Small batches are as many as make 256 sequences.
    """
    stream = text.val or text.train
    return list(take(stream, max(_MEASURED_BATCHES, _MEASURED_SEQUENCES // stream.batch_size)))


def tokens_of(loader: Loader) -> np.ndarray[Any, Any]:
    """Return the token ids of the first 2,000 batches, one after the other."""
    return np.concatenate([batch["input_ids"].flatten().numpy() for batch in take(loader, 2000)])


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
