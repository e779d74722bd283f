"""What the report shows beside the figures: what answers without a model reach, a confusion matrix, some answers.

One function a task, found by its name; a task without one shows its figures alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.data.spell_text import SpellText
from deepseek.metrics.confusion import confusion
from deepseek.metrics.error_rate import character_error_rate
from deepseek.nn.boxes import cxcywh_to_xyxy
from deepseek.nn.losses import IGNORE
from deepseek.road.picture import FOUND, WANTED, mask_image, shown_image, with_boxes, write_png
from deepseek.road.recipe import EvaluateConfig
from deepseek.road.sample_data import SampleData
from deepseek.tasks.segmentation import chosen_classes
from deepseek.tasks.task import Task, eval_mode, to_device
from deepseek.train.loop import take

_MOST_CLASSES = 40  # of a confusion matrix on a page
_MOST_CELLS = 8  # of a table's row


@dataclass
class Example:
    """A sample held back: what it is, what is right, what the model says."""

    wanted: str
    found: str
    text: str = ""
    image: Tensor | None = None
    """uint8 (3, height, width)."""


@dataclass
class Exhibits:
    """What is shown of an evaluation. `baselines` have the names of the figures that they belong beside."""

    baselines: dict[str, float] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    """Row: the right class, column: the model's."""
    classes: list[str] = field(default_factory=list)

    def written(self, folder: Path) -> dict[str, Any]:
        """Write the pictures below `folder`, and return all as plain values. Raises StorageError."""
        rows = []
        for number, one in enumerate(self.examples):
            row = {"wanted": one.wanted, "found": one.found, "text": one.text}
            if one.image is not None:
                path = folder / "examples" / f"{number:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, one.image)
                row["picture"] = path.relative_to(folder).as_posix()
            rows.append(row)
        return {"rows": rows, "confusion": self.confusion, "classes": self.classes}


@dataclass
class _Measured:
    """What the functions below look at."""

    model: nn.Module
    task: Task
    data: SampleData
    config: EvaluateConfig

    def batches(self) -> Iterator[Any]:
        """Yield the batches held back, on the model's device."""
        device = next(iter(self.model.state_dict().values())).device
        for batch in take(self.data.held_out, self.config.max_batches):
            yield to_device(batch, device)

    def name(self, label: int) -> str:
        """Return the name of a class."""
        names = self.data.class_names
        return names[label] if 0 <= label < len(names) else str(label)

    def sample(self, place: int) -> dict[str, Any]:
        """Return a sample as it was read. The training part, where it stands in, is in another order."""
        if self.data.val is None:
            return {}
        found: dict[str, Any] = self.data.val.reader.read(place)
        return found


def exhibits_of(model: nn.Module, task: Task, data: SampleData, config: EvaluateConfig) -> Exhibits:
    """Return what is shown of `model` on the data held back. Raises what the task raises."""
    show = _SHOWN.get(task.name)
    if show is None:
        return Exhibits()
    with eval_mode(model):
        return show(_Measured(model, task, data, config))


def _of_classes(run: _Measured) -> Exhibits:
    """Half of the examples are mistakes, the surest first; the others come as they lie."""
    chances, labels, images, rows = [], [], [], []
    for batch in run.batches():
        inputs = batch["pixel_values"] if "pixel_values" in batch else {k: v for k, v in batch.items() if k != "labels"}
        chances.append(run.task.predict(run.model, inputs).cpu())
        labels.append(batch["labels"].cpu())
        rows += batch["index"].tolist()
        if "pixel_values" in batch:
            images += [shown_image(one) for one in batch["pixel_values"]]
    scores, wanted = torch.cat(chances), torch.cat(labels)
    sure, found = scores.max(-1)
    known = wanted != IGNORE
    counts = torch.bincount(wanted[known])
    wrong = (known & (found != wanted)).nonzero().flatten()
    mistakes = wrong[sure[wrong].argsort(descending=True)].tolist()[: run.config.examples // 2]
    others = [place for place in range(len(wanted)) if place not in mistakes]
    chosen = mistakes + others[: run.config.examples - len(mistakes)]
    whole = Exhibits({"accuracy": float(counts.max()) / int(counts.sum())})
    for place in chosen:
        said = f"{run.name(int(found[place]))} ({float(sure[place]):.0%})"
        picture = images[place] if images else None
        text = "" if images else _described(run.sample(rows[place]))
        whole.examples.append(Example(run.name(int(wanted[place])), said, text, picture))
    if scores.shape[1] <= _MOST_CLASSES:
        whole.confusion = confusion(found, wanted, scores.shape[1]).tolist()
        whole.classes = [run.name(label) for label in range(scores.shape[1])]
    return whole


def _of_values(run: _Measured) -> Exhibits:
    found, wanted, rows = [], [], []
    for batch in run.batches():
        rows += batch["index"].tolist()
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        found.append(run.task.predict(run.model, inputs).cpu().flatten(1 if batch["labels"].dim() > 1 else 0))
        wanted.append(batch["labels"].cpu())
    values, truth = torch.cat(found), torch.cat(wanted).float()
    off = truth - truth.nanmean(0)
    off = off[~off.isnan()]
    whole = Exhibits({"mae": float(off.abs().mean()), "rmse": float(off.square().mean().sqrt()), "r2": 0.0})
    for place in range(min(run.config.examples, len(truth))):
        text = _described(run.sample(rows[place]))
        whole.examples.append(Example(_number(truth[place]), _number(values[place]), text))
    return whole


def _of_masks(run: _Measured) -> Exhibits:
    """Each example is the image, the mask that is right, and the model's."""
    whole, filled, total = Exhibits(), 0, 0
    for batch in run.batches():
        pixels, masks = batch["pixel_values"], batch["masks"].cpu()
        filled, total = filled + int((masks > 0).sum()), total + int((masks >= 0).sum())
        if len(whole.examples) >= run.config.examples or pixels.dim() != 4:
            continue
        chances = run.task.predict(run.model, pixels)
        classes = max(2, chances.shape[1])
        for image, mask, found in zip(pixels, masks, chosen_classes(chances).cpu(), strict=True):
            shown = shown_image(image)
            size = (shown.shape[1], shown.shape[2])
            parts = [shown, mask_image(mask, classes, size), mask_image(found, classes, size)]
            whole.examples.append(Example("", f"{float((mask == found).float().mean()):.1%}", "", torch.cat(parts, 2)))
    del whole.examples[run.config.examples :]
    share = filled / max(1, total)
    whole.baselines = {"dice": 2 * share / (1 + share), "iou": share}  # all is foreground
    return whole


def _of_boxes(run: _Measured) -> Exhibits:
    whole = Exhibits({"map50": 0.0})
    for batch in run.batches():
        if len(whole.examples) >= run.config.examples:
            break
        pixels = batch["pixel_values"]
        height, width = pixels.shape[-2:]
        scale = torch.tensor([width, height, width, height])
        truth = zip(batch["boxes"].cpu(), batch["counts"].tolist(), strict=True)
        for image, found, (rows, count) in zip(pixels, run.task.predict(run.model, pixels), truth, strict=True):
            shown = with_boxes(shown_image(image), cxcywh_to_xyxy(rows[:count, 1:]), WANTED)
            shown = with_boxes(shown, found.boxes.cpu() / scale, FOUND)
            names = (
                [run.name(int(label)) for label in rows[:count, 0]],
                [run.name(int(label)) for label in found.labels],
            )
            whole.examples.append(Example(_counted(names[0]), _counted(names[1]), "", shown))
    del whole.examples[run.config.examples :]
    return whole


def _of_transcripts(run: _Measured) -> Exhibits:
    spell = next((stage for stage in run.data.pipeline.steps if isinstance(stage, SpellText)), None)
    references: list[str] = []
    found: list[str] = []
    for batch in run.batches():
        rows = [[one for one in row if one != IGNORE] for row in batch["labels"].tolist()]
        answers = run.task.predict(run.model, batch)
        for mine, theirs in ((references, rows), (found, answers)):
            mine += [spell.spelled(row) if spell is not None else " ".join(map(str, row)) for row in theirs]
    always = Counter(references).most_common(1)[0][0]
    whole = Exhibits({"cer": character_error_rate(references, [always] * len(references)).rate})
    order = sorted(range(len(found)), key=lambda place: references[place] == found[place])
    chosen = order[: run.config.examples // 2] + order[::-1][: run.config.examples - run.config.examples // 2]
    whole.examples = [Example(references[place], found[place]) for place in dict.fromkeys(chosen)]
    return whole


def _of_hidden_tokens(run: _Measured) -> Exhibits:
    """The baseline says the commonest hidden token everywhere."""
    hidden = torch.cat([batch["labels"].cpu().flatten() for batch in run.batches()])
    counts = torch.bincount(hidden[hidden != IGNORE])
    return Exhibits({"accuracy": float(counts.max()) / max(1, int(counts.sum()))})


def _of_noise(run: _Measured) -> Exhibits:
    """The examples are images that the model makes out of noise."""
    whole = Exhibits()
    batch = next(iter(run.batches()))
    clean = batch["latents"] if "latents" in batch else batch["pixel_values"]
    count = min(run.config.examples, len(clean))
    if not count or clean.dim() != 4:
        return whole
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((count, *clean.shape[1:]), generator=generator).to(clean.device)
    asked = {"noise": noise, **({"labels": batch["labels"][:count]} if "labels" in batch else {})}
    names = [run.name(int(label)) for label in asked["labels"]] if "labels" in asked else [""] * count
    for image, name in zip(run.task.predict(run.model, asked), names, strict=True):
        whole.examples.append(Example(name, "", "", shown_image(image)))
    return whole


_SHOWN: Mapping[str, Callable[[_Measured], Exhibits]] = {
    "classification": _of_classes,
    "detection": _of_boxes,
    "diffusion": _of_noise,
    "image_classification": _of_classes,
    "masked_lm": _of_hidden_tokens,
    "regression": _of_values,
    "segmentation": _of_masks,
    "speech_recognition": _of_transcripts,
}


def _described(sample: Mapping[str, Any]) -> str:
    """Return a sample in words: its text, the first cells of its row, or its file."""
    if isinstance(sample.get("text"), str):
        return str(sample["text"])
    if isinstance(sample.get("row"), dict):
        return ", ".join(f"{key} {value}" for key, value in list(sample["row"].items())[:_MOST_CELLS])
    return Path(str(sample.get("path", ""))).name


def _counted(names: list[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items())) or "none"


def _number(value: Tensor) -> str:
    return ", ".join(f"{one:.4g}" for one in value.flatten().tolist()[:4])
