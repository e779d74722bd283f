"""One feature's values as counts: numbers between quantiles, categories by name, missing ones apart.

Bins are learned once, so what comes later is counted in the same bins. Not here: comparing counts (see `drift`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepseek.serve.monitoring.features import Value, numbers

_BINS = 32
_CATEGORIES = 63


class Histogram:
    """Counts in bins: those of the values, one for values never seen, one for missing ones."""

    def __init__(
        self, counts: Sequence[int], *, edges: Sequence[float] | None = None, names: Sequence[str] = ()
    ) -> None:
        """Numbers have ascending `edges`: bin i holds what lies in (edge i-1, edge i], the first all below too.

        Raises ValueError where counts and bins don't fit.
        """
        self.edges = None if edges is None else np.asarray(edges, dtype=np.float64)
        self.names = tuple(names)
        self.counts: NDArray[np.int64] = np.asarray(counts, dtype=np.int64)
        self._places = {name: place for place, name in enumerate(self.names)}
        if len(self.counts) != self.bins or self.counts.min(initial=0) < 0:
            raise ValueError(f"{len(self.counts)} counts for {self.bins} bins")

    @property
    def bins(self) -> int:
        """The number of bins."""
        return (len(self.names) if self.edges is None else len(self.edges)) + 2

    @classmethod
    def of(cls, values: Sequence[Value]) -> Self:
        """Learn bins of values, and count these. A feature is one of numbers if any value is one."""
        if any(isinstance(value, float) for value in values):
            known = numbers(values)
            known = known[~np.isnan(known)]
            places = np.linspace(0, 1, _BINS)
            edges = np.unique(np.quantile(known, places, method="lower")) if len(known) else np.zeros(0)
            empty = cls([0] * (len(edges) + 2), edges=edges.tolist())
        else:
            most = Counter(value for value in values if isinstance(value, str)).most_common(_CATEGORIES)
            empty = cls([0] * (len(most) + 2), names=[name for name, _ in most])
        counts = np.bincount(empty.places(values), minlength=empty.bins)
        return cls(counts.tolist(), edges=None if empty.edges is None else empty.edges.tolist(), names=empty.names)

    def places(self, values: Sequence[Value]) -> NDArray[np.int64]:
        """Return the bin of each value: the last but one for what is new, the last for what is missing."""
        if self.edges is None:
            missing = self.bins - 1
            get, new = self._places.get, missing - 1
            found = [get(one, new) if isinstance(one, str) else missing if one is None else new for one in values]
            return np.array(found, dtype=np.int64)
        value = numbers(values)
        places = np.searchsorted(self.edges, value, side="left")  # NaN sorts last
        return np.where(np.isnan(value), self.bins - 1, places)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        kind = {"names": list(self.names)} if self.edges is None else {"edges": self.edges.tolist()}
        return {**kind, "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        counts = [int(count) for count in values["counts"]]
        if "names" in values:
            return cls(counts, names=[str(name) for name in values["names"]])
        edges = [float(edge) for edge in values["edges"]]
        if not all(map(math.isfinite, edges)) or any(high <= low for low, high in zip(edges, edges[1:], strict=False)):
            raise ValueError("edges do not ascend")
        return cls(counts, edges=edges)
