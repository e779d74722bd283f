"""What the training data looked like, for the bundle: the server compares requests with it (`serve.monitoring.drift`).

A table is described by its rows as they are read, anything else by the model's inputs. Where a class is called
"normal", anomalies are measured against its samples alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from deepseek.data.table_columns import TableColumns
from deepseek.errors import DataError, ExportError
from deepseek.export.signature import evaluating, output_tensors, single_output_name
from deepseek.road.sample_data import SampleData
from deepseek.road.training import device_of
from deepseek.serve.monitoring.profile import MOST_ROWS, make_profile
from deepseek.tasks.inputs import call_model, input_names
from deepseek.tasks.task import to_device
from deepseek.train.loop import take

_BATCHES = 64
_NORMAL = "normal"


def profile_of(model: nn.Module, data: SampleData) -> dict[str, Any] | None:
    """Return the profile of a run's training data and of the model's answers to some of them; None where its samples
    have none of the model's inputs (noise is made up for a diffusion model).
    """
    with data.plain:
        batches = list(take(data.plain, _BATCHES))
    inputs = [dict(_inputs(model, batch)) for batch in batches]
    outputs = _outputs(model, batches)
    columns = next((stage for stage in data.pipeline.steps if isinstance(stage, TableColumns)), None)
    if columns is None:
        return make_profile(inputs, outputs) if any(inputs) else None
    source = data.plain.reader
    samples = [source.read(place) for place in range(0, len(source), max(1, -(-len(source) // MOST_ROWS)))]
    names = [*(columns.numeric or ()), *(columns.categorical or ())]
    rows = [{name: sample["row"].get(name) for name in names} for sample in samples]
    normal = None
    if _NORMAL in data.class_names:
        normal = [sample.get("label") == data.class_names.index(_NORMAL) for sample in samples]
    return make_profile(rows, outputs, of="rows", normal=normal)


def _inputs(model: nn.Module, batch: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    known = input_names(type(model)).known
    for name, value in batch.items():
        if name in known and name != "labels" and isinstance(value, Tensor):
            yield name, value.cpu().numpy()


def _outputs(model: nn.Module, batches: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Return the model's answers to batches; none of one whose answers are no plain tensors."""
    device, answers = device_of(model), []
    try:
        with evaluating(model):
            for batch in batches:
                named = output_tensors(call_model(model, to_device(batch, device)), single_output_name(model))
                answers.append({name: value.float().cpu().numpy() for name, value in named.items()})
    except (DataError, ExportError):
        return []
    return answers
