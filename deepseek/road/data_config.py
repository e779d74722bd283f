"""The data section of a recipe. Not here: what is wrong with one (`check`), and what is made of it (`sample_data`)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from deepseek.config import Config


class DataConfig(Config):
    """What the model learns from. `tokenizer` to `allow_smaller_vocab` are for text; from `reader` on, for every task
    but language_modeling."""

    train: str
    """For language_modeling a JSONL file ({"text"}, {"prompt", "response"} or {"messages"}), a text file, a folder of
    both, or `python-docs`, the English text that comes with Python. For every other task a file or folder that one of
    the readers knows. `${NAME}` stands for an environment variable."""
    val: str | None = None
    """Validation data; null holds back `train.val_fraction` of the training data."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one in the Hugging Face layout; null trains a tokenizer on the data."""
    vocab_size: int | None = Field(default=None, ge=261, le=1 << 20)
    """Tokens of the trained tokenizer; null is the model's vocab_size, or fewer where the data can't give so many.
    A number that the data can't give is an error."""
    allow_smaller_vocab: bool = False
    """Take the largest vocabulary the data gives where that is below vocab_size."""
    reader: dict[str, Any] = Field(default_factory=dict)
    """How the files are read: `kind`, where their content leaves a choice (image_folder, segmentation, coco, voc,
    audio, audio_folder, audio_text, jsonl, csv, idx, ...), and the reader's options, such as `label` or `pattern`."""
    rename: dict[str, str] = Field(default_factory=dict)
    """New names for values of a sample: `{review: text}`."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Classes joined or renamed: `{normal: normal, "*": attack}`, where "*" stands for all others."""
    texts: dict[str, str] = Field(default_factory=dict)
    """For each class the text that it stands for: `{"0": zero, "1": one}` makes transcripts of classes."""
    split_by: str | None = None
    """A value of the samples (speaker, patient): all samples that share it are held back together, or none of them."""
    pipeline: list[dict[str, Any]] = Field(default_factory=list)
    """The stages that make of a sample what the model takes, each `{name: Resize, size: 64}`. Those that change samples
    at random are left out for validation; those that learn from data learn from the training part alone."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Processes that make batches ahead; 0 makes them in a thread."""
    length_buckets: int = Field(default=0, ge=0, le=1 << 20)
    """So many batches at a time are sorted by length before they are cut, for less padding; 0 does not sort."""
