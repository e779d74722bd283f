"""Samples to a batch: a dict of tensors with the batch first, under the names that models and tasks take.

Sequences are padded behind, with `lengths` or `attention_mask` to tell; boxes become the rows that the detection task
takes. Text, paths and other values that are no numbers stay out, unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deepseek.data.pipeline.stage import Sample
from deepseek.errors import DataError

_IGNORE = -100
_OWN_RULE = frozenset({"image", "boxes", "box_labels", "label"})
_NOT_IN_BATCH = frozenset({"epoch", "sample_rate"})


def collate(samples: Sequence[Sample], keep: Sequence[str] = (), pad_id: int = 0) -> dict[str, Any]:
    """Return the batch of at least one sample; the keys in `keep` stay, as lists.

    | sample | batch |
    |---|---|
    | `input_features`, `spectrogram` | (batch, frames, n), zeros behind; `lengths` (batch,) of frames |
    | `waveform` | (batch, [channels,] time), zeros behind; `lengths` of samples |
    | `input_ids` | (batch, time), `pad_id` behind; `attention_mask`, 1 where there is a token |
    | `labels` | (batch, time), -100 behind |
    | `label` | `labels` (batch,) int64, or (batch, num_labels) shares |
    | `image` | `pixel_values`; uint8 becomes float from 0 to 1 |
    | `mask` | `masks` (batch, *space) |
    | `boxes`, `box_labels` | `boxes` (batch, n, 5): class, then centre, width and height as shares; `counts` |

    Raises DataError where samples differ in their keys, or in shape where nothing can be padded.
    """
    if not samples:
        raise DataError("a batch needs at least one sample", found="none")
    names = sorted(set(samples[0]).difference(keep, _NOT_IN_BATCH))
    for place, sample in enumerate(samples):
        if sorted(set(sample).difference(keep, _NOT_IN_BATCH)) != names:
            raise DataError(
                "the samples of a batch have different keys",
                found=f"{sorted(sample)} in sample {sample.get('index', place)}",
                wanted=str(sorted(samples[0])),
            )
    batch: dict[str, Any] = {key: [sample.get(key) for sample in samples] for key in keep}
    for name in names:
        values = [sample[name] for sample in samples]
        if name not in _OWN_RULE:
            batch.update(_columns(name, values, samples, pad_id))
    if "image" in names:
        batch["pixel_values"] = _stack("image", [_as_float(sample["image"]) for sample in samples], samples)
    if "label" in names:
        batch["labels"] = _labels(samples)
    if "boxes" in names:
        batch["boxes"], batch["counts"] = _boxes(samples)
    return batch


def _columns(name: str, values: list[Any], samples: Sequence[Sample], pad_id: int) -> dict[str, Tensor]:
    """Return what becomes of the key `name`: nothing for values that are no numbers."""
    if all(isinstance(value, Number) for value in values):
        return {name: torch.tensor(values)}
    if not all(isinstance(value, Tensor) for value in values):
        return {}
    if name in ("input_features", "spectrogram", "waveform"):
        time_last = name == "waveform"
        rows = [value.movedim(-1, 0) if time_last else value for value in values]
        padded = _pad(name, rows, 0.0, samples)
        return {name: padded.movedim(1, -1) if time_last else padded, "lengths": torch.tensor([len(r) for r in rows])}
    if name == "input_ids":
        mask = pad_sequence([torch.ones_like(value) for value in values], batch_first=True)
        return {name: _pad(name, values, pad_id, samples), "attention_mask": mask}
    if name == "labels":
        return {name: _pad(name, values, _IGNORE, samples)}
    return {"masks" if name == "mask" else name: _stack(name, values, samples)}


def _pad(name: str, rows: list[Tensor], value: float, samples: Sequence[Sample]) -> Tensor:
    if len({row.shape[1:] for row in rows}) > 1:
        _refuse_shapes(name, rows, samples, "the same but for their length")
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _stack(name: str, values: list[Tensor], samples: Sequence[Sample]) -> Tensor:
    if len({value.shape for value in values}) > 1:
        _refuse_shapes(name, values, samples, "one shape")
    return torch.stack(values)


def _refuse_shapes(name: str, values: list[Tensor], samples: Sequence[Sample], wanted: str) -> None:
    other = next(place for place, value in enumerate(values) if value.shape != values[0].shape)
    raise DataError(
        f"the {name} of a batch differ in shape",
        found=f"{tuple(values[0].shape)} and {tuple(values[other].shape)}, sample {samples[other].get('index', other)}",
        wanted=wanted,
        fix="add Resize or Letterbox to the pipeline" if name in ("image", "pixel_values", "mask") else None,
    )


def _as_float(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def _labels(samples: Sequence[Sample]) -> Tensor:
    values = [sample["label"] for sample in samples]
    if all(isinstance(value, Tensor) and value.ndim > 0 for value in values):
        return _stack("label", values, samples)
    return torch.tensor([int(value) for value in values])


def _boxes(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return (batch, n, 5) rows of class, centre, width and height as shares of the image, and counts (batch,)."""
    rows = []
    for sample in samples:
        image = sample["image"] if "image" in sample else sample["pixel_values"]
        height, width = image.shape[-2:]
        box = sample["boxes"] / torch.tensor([width, height, width, height])
        centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
        rows.append(torch.cat([sample["box_labels"].float()[:, None], centre, size], dim=1))
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
