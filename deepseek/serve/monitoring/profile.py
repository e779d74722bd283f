"""What a model's training data looked like, in a file of some 100 KB: `profile.json` in the bundle.

Counts of each feature, of the model's own answers, and typical rows for anomalies. Made once after training, read by
the server, which compares requests with it. Not here: the comparison (see `drift`, `anomaly`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from deepseek.errors import BundleError
from deepseek.serve.monitoring.anomaly import Anomalies
from deepseek.serve.monitoring.features import Features, columns_of, of_inputs, of_outputs, of_row
from deepseek.serve.monitoring.histogram import Histogram

PROFILE_VERSION = 1
MOST_ROWS = 50_000
_MOST_FEATURES = 512

Of = Literal["rows", "inputs"]


class Profile(NamedTuple):
    """`of` says what requests are compared as: a table's rows as they come, or a model's inputs."""

    of: Of
    rows: int
    features: Mapping[str, Histogram]
    scores: Mapping[str, Histogram]
    anomalies: Anomalies | None


def make_profile(
    samples: Iterable[Mapping[str, Any]],
    outputs: Iterable[Mapping[str, np.ndarray]] = (),
    *,
    of: Of = "inputs",
    normal: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return the profile of training data as plain values for `profile.json`.

    `samples` are rows (cells by column) with `of="rows"`, else batches of the model's inputs (name to array, batch
    first); the first 50,000 rows count. `outputs`: the model's outputs for some of them, in batches. `normal` says
    which rows an anomaly is measured against, where not all are normal. Raises BundleError where there is no row.
    """
    made: Iterable[Features]
    if of == "rows":
        made = (of_row(sample) for sample in samples)
    else:
        made = (row for batch in samples for row in of_inputs(batch))
    rows = list(islice(made, MOST_ROWS))
    if not rows:
        raise BundleError("there are no training data to make a profile of")
    names = list(rows[0])[:_MOST_FEATURES]
    answers = list(islice((row for batch in outputs for row in of_outputs(batch)), MOST_ROWS))
    chosen = rows if normal is None else [row for row, good in zip(rows, normal, strict=False) if good]
    anomalies = Anomalies.of([{name: row.get(name) for name in names} for row in chosen])
    return {
        "version": PROFILE_VERSION,
        "of": of,
        "rows": len(rows),
        "features": _histograms(rows, names),
        "scores": _histograms(answers, list(answers[0]) if answers else []),
        "anomalies": None if anomalies is None else anomalies.to_json(),
    }


def read_profile(values: Mapping[str, Any]) -> Profile:
    """Return a profile of the plain values of `profile.json`. Raises BundleError for anything else."""
    try:
        if values["version"] != PROFILE_VERSION or values["of"] not in ("rows", "inputs"):
            raise ValueError(f"version {values['version']!r} of {values['of']!r}")
        found = values["anomalies"]
        return Profile(
            values["of"],
            int(values["rows"]),
            {str(name): Histogram.from_json(one) for name, one in values["features"].items()},
            {str(name): Histogram.from_json(one) for name, one in values["scores"].items()},
            None if found is None else Anomalies.from_json(found),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            "profile.json is damaged or of another version",
            found=f"{type(error).__name__}: {error}"[:200],
            wanted=f"version {PROFILE_VERSION}",
            fix="remove the file, or train again",
        ) from error


def _histograms(rows: Sequence[Features], names: Sequence[str]) -> dict[str, Any]:
    columns = columns_of(rows, names)
    return {name: Histogram.of(column).to_json() for name, column in columns.items()}
