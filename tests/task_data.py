"""Small data sets of every kind, written to a folder, and recipes that learn from them in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deepseek.data.audio import write_audio
from deepseek.road.picture import write_png

_TRAIN = (
    "train: {max_steps: 6, batch_size: 8, val_fraction: 0.25, compile: false, precision: fp32, tensorboard: false}\n"
)


def digits(folder: Path) -> None:
    """Bright bars at one of four places, in MNIST's format."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 48).astype(np.uint8)
    images = draw.integers(0, 60, (48, 16, 16)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 3] = 250
    folder.mkdir()
    (folder / "images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + np.array(images.shape, ">i4").tobytes() + images.tobytes()
    )
    (folder / "labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([48], ">i4").tobytes() + labels.tobytes())


def table(folder: Path) -> None:
    """Rows whose class follows from a number and a category; `price` follows from the number."""
    draw = random.Random(0)
    folder.mkdir()
    rows = ["size,colour,price,kind"]
    for _ in range(60):
        size, colour = draw.uniform(0, 10), draw.choice(["red", "blue"])
        rows.append(f"{size:.3f},{colour},{2 * size + 1:.3f},{'large' if size > 5 else 'small-' + colour}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def reviews(folder: Path) -> None:
    """Short texts, good or bad by one word."""
    draw = random.Random(0)
    folder.mkdir()
    words = "the room was near a street and we had our breakfast there".split()
    rows = ["label,review"]
    for _ in range(60):
        good = draw.random() < 0.5
        text = [*draw.choices(words, k=draw.randint(4, 12)), "lovely" if good else "dirty"]
        rows.append(f"{int(good)},{' '.join(text)}")
    (folder / "reviews.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def recordings(folder: Path) -> None:
    """Tones of two heights by three speakers."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    time = torch.arange(3200) / 8000
    for label, pitch in ((0, 300.0), (1, 900.0)):
        for speaker in ("ann", "ben", "cem"):
            for take in range(5):
                tone = 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.02 * torch.randn(3200, generator=generator)
                write_audio(folder / f"{label}_{speaker}_{take}.wav", tone, 8000)


def boxes(folder: Path) -> None:
    """Bright squares on a dark ground, in Pascal-VOC's form."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(16):
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        x, y, side = draw.randint(4, 30), draw.randint(4, 30), draw.choice([12, 28])
        image[:, y : y + side, x : x + side] = 240
        write_png(folder / "images" / f"{number:02}.png", image)
        name, box = "small" if side == 12 else "large", (x + 1, y + 1, x + side, y + side)
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        (folder / "annotations" / f"{number:02}.xml").write_text(
            f"<annotation><filename>{number:02}.png</filename><size><width>64</width><height>64</height></size>"
            f"<object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
        )


def masks(folder: Path) -> None:
    """Bright discs and their masks."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    for number in range(12):
        x, y, radius = draw.randint(12, 36), draw.randint(12, 36), draw.randint(5, 11)
        disc = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).to(torch.uint8)
        write_png(folder / "images" / f"{number}.png", (disc * 180 + 30).expand(3, -1, -1))
        write_png(folder / "labels" / f"{number}.png", disc[None] * 255)


RECIPES: dict[str, tuple[Callable[[Path], None], str]] = {
    "image_classification": (
        digits,
        """\
data:
  train: DATA
  pipeline: [{name: RandomAffine}, {name: Normalize, mean: [0.3], std: [0.3]}]
task: {name: image_classification, label_smoothing: 0.1}
model: {name: ResNet, block: basic, depths: [1], hidden_sizes: [8], stem_size: 8}
export:
""",
    ),
    "classification": (
        table,
        """\
data:
  train: DATA
  reader: {kind: csv, label: kind}
  classes: {large: large, "*": small}
  pipeline: [{name: TableColumns, one_hot: true, ignore: [price]}]
task: {name: classification}
model: {name: MLP, hidden_sizes: [16]}
""",
    ),
    "regression": (
        table,
        """\
data:
  train: DATA
  rename: {price: labels}
  pipeline: [{name: TableColumns, numeric: [size], categorical: [colour]}]
task: {name: regression, shift: 10.0, scale: 5.0}
model: {name: FTTransformer, num_numeric: 1, num_layers: 1, d_model: 16, num_heads: 2}
""",
    ),
    "text": (
        reviews,
        """\
data:
  train: DATA
  classes: {"0": bad, "1": good}
  allow_smaller_vocab: true
  vocab_size: 300
  pipeline: [{name: Tokenize, max_length: 24}]
  length_buckets: 2
task: {name: classification}
model: {name: BERT, head: classification, max_length: 24, num_layers: 1, d_model: 16, num_heads: 2}
""",
    ),
    "speech_recognition": (
        recordings,
        """\
data:
  train: DATA
  reader: {kind: audio, pattern: "{tone}_{speaker}_{take}.wav"}
  texts: {"0": low, "1": high}
  split_by: speaker
  num_workers: 1
  pipeline: [{name: SpellText}, {name: LogMel, n_mels: 16}, {name: SpecAugment, freq_mask: 2, time_mask: 2},
    {name: Cepstra, type: log_mel}, {name: MeanVarianceNorm}]
task: {name: speech_recognition}
model: {name: Conformer, encoder: {num_layers: 1, d_model: 16, attention_heads: 2, conv_kernel: 5}}
""",
    ),
    "detection": (
        boxes,
        """\
data:
  train: DATA
  pipeline: [{name: HorizontalFlip}, {name: Letterbox, size: 64}]
task: {name: detection, min_score: 0.001, max_detections: 20}
model: {name: YOLOv5, image_size: 64, depth_multiple: 0.1, width_multiple: 0.05}
""",
    ),
    "segmentation": (
        masks,
        """\
data:
  train: DATA
  reader: {mask_values: [0, 255], channels: 1}
  pipeline: [{name: RandomCrop, size: 32}, {name: Normalize, mean: [0.3], std: [0.3]}]
task: {name: segmentation}
model: {name: UNetPlusPlus, channels: [4, 8]}
""",
    ),
}
"""For each kind: what writes its data, and the recipe."""


def written(kind: str, folder: Path) -> Path:
    """Write the data and the recipe of a kind below `folder`; return the recipe's path."""
    write, text = RECIPES[kind]
    write(folder / "data")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: first\n{text.replace('DATA', 'data')}{_TRAIN}evaluate: {{examples: 4}}\n", encoding="utf-8"
    )
    return recipe
