"""Has the traffic drifted from the training data? Each feature's last requests against its counts in training.

Three tests a feature: the population stability index over bins (its null distribution is that of chi-square:
Yurdakul and Naranjo, Journal of Risk Model Validation 14(4), 2020), the Kolmogorov-Smirnov distance of numbers
(bound of Dvoretzky, Kiefer, Wolfowitz and Massart 1990, on bins never larger than without), and the share of values
that training hardly had (Poisson). Their thresholds share one rate of false alarms over all features and tests
(Bonferroni), so that traffic like the training data alarms no more often than that, whatever the number of features.
Not here: single requests (see `anomaly`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.serve.monitoring.features import Value, columns_of
from deepseek.serve.monitoring.histogram import Histogram

PSI_FLOOR = 0.1
"""Below it nobody calls a population changed, however sure the difference is."""
_KS_FLOOR = 0.05
_RARE = 0.005
"""Bins with less of the training data are counted together."""


class FeatureDrift(NamedTuple):
    """One feature now: statistics, each beside the value from which on it alarms; `rare` is a share."""

    psi: float
    psi_limit: float
    ks: float
    ks_limit: float
    rare: float
    rare_limit: float

    @property
    def alarm(self) -> bool:
        """Whether one of them is above."""
        return self.psi > self.psi_limit or self.ks > self.ks_limit or self.rare > self.rare_limit


class Drift:
    """The last `window` rows against the training data; not thread-safe."""

    def __init__(
        self,
        features: Mapping[str, Histogram],
        *,
        window: int = 1000,
        hop: int = 250,
        false_alarms: float = 0.001,
    ) -> None:
        """Compare every `hop` rows; of comparisons of unchanged traffic at most `false_alarms` alarm."""
        self.window = window
        self.latest: Mapping[str, FeatureDrift] = {}
        """The last comparison; empty until `window` rows were seen."""
        self._hop = hop
        self._names = [name for name, histogram in features.items() if histogram.counts.sum() > 0]
        self._histograms = [features[name] for name in self._names]
        level = false_alarms / (3 * max(1, len(self._names)))
        self._tests = [_Test(histogram, window, level) for histogram in self._histograms]
        self._ring = np.zeros((window, len(self._names)), dtype=np.int64)
        self._seen = 0
        self._due = window

    def add(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Take rows in; compare when it is time."""
        for start in range(0, len(rows), self._hop):
            self._add(rows[start : start + self._hop])

    @property
    def alarms(self) -> list[str]:
        """The features that drifted."""
        return [name for name, one in self.latest.items() if one.alarm]

    def _add(self, rows: Sequence[Mapping[str, Value]]) -> None:
        columns = columns_of(rows, self._names)
        places = (self._seen + np.arange(len(rows))) % self.window
        for number, (name, histogram) in enumerate(zip(self._names, self._histograms, strict=True)):
            self._ring[places, number] = histogram.places(columns[name])
        self._seen += len(rows)
        if self._seen >= self._due:
            self._due = self._seen + self._hop
            self.latest = {
                name: test.of(np.bincount(self._ring[:, number], minlength=test.bins))
                for number, (name, test) in enumerate(zip(self._names, self._tests, strict=True))
            }


class _Test:
    """The three tests of one feature, with what depends on the training data worked out once."""

    def __init__(self, reference: Histogram, window: int, level: float) -> None:
        counts = reference.counts.astype(np.float64)
        total, self.bins = counts.sum(), reference.bins
        common = counts / total >= _RARE
        self._rare = ~common
        self._groups = np.where(common, np.cumsum(common) - 1, common.sum())
        both = 1 / window + 1 / total
        rare = counts[self._rare].sum()
        self._has_rare_group = rare / total >= _RARE
        known = np.bincount(self._groups, weights=counts, minlength=int(common.sum()) + 1)
        self._known = (known if self._has_rare_group else known[:-1]) + 0.5
        freedom = len(self._known) - 1
        self._psi_limit = max(PSI_FLOOR, chi_square(1 - level, freedom) * both) if freedom else math.inf
        self._numbers = slice(0, self.bins - 1) if reference.edges is not None else None
        self._cumulated = np.cumsum(counts[self._numbers]) / max(1.0, counts[self._numbers].sum())
        self._level = level
        self._total = max(1.0, counts[self._numbers].sum())
        # the share of rare values in all of training is itself known from `rare` sightings only
        self._rare_limit = poisson_limit(window * poisson_limit(rare, level / 2) / total, level / 2) / window

    def of(self, counts: NDArray[np.int64]) -> FeatureDrift:
        """Compare a window's counts."""
        grouped = np.bincount(self._groups, weights=counts, minlength=len(self._known))[: len(self._known)] + 0.5
        now, before = grouped / grouped.sum(), self._known / self._known.sum()
        psi = float(((now - before) * np.log(now / before)).sum())
        ks, ks_limit = 0.0, math.inf
        if self._numbers is not None and (finite := counts[self._numbers].sum()) > 0:
            ks = float(np.abs(np.cumsum(counts[self._numbers]) / finite - self._cumulated).max())
            ks_limit = max(_KS_FLOOR, math.sqrt(-math.log(self._level / 2) / 2 * (1 / finite + 1 / self._total)))
        rare = float(counts[self._rare].sum() / counts.sum())
        return FeatureDrift(psi, self._psi_limit, ks, ks_limit, rare, self._rare_limit)


def chi_square(share: float, freedom: int) -> float:
    """Return the quantile of a chi-square distribution (Wilson and Hilferty 1931).

    In the tails it is never more than 2% too low, and too high (which alarms later) for few degrees of freedom.
    """
    z = NormalDist().inv_cdf(share)
    spread = 2 / (9 * freedom)
    return float(freedom * max(0.0, 1 - spread + z * math.sqrt(spread)) ** 3)


def poisson_limit(mean: float, level: float) -> float:
    """Return the count that a Poisson variable exceeds with probability at most `level`.

    Of a count that was seen (`mean`) it is an upper bound for what was to be expected, too.
    """
    z = NormalDist().inv_cdf(1 - level)
    # the square root of a Poisson variable plus 3/8 is nearly normal (Anscombe 1948); one more for the whole numbers
    return float((math.sqrt(mean + 0.375) + z / 2 + z**2 / 24 / math.sqrt(mean + 1)) ** 2 + 1)
