"""Drift and anomalies on the traffic of the network-attack recipe: false alarms on held-out normal connections.

The profile knows the training part alone; what alarms is counted on the part that the recipe holds back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepseek.road.recipe import read_recipe
from deepseek.road.sample_source import open_data
from deepseek.road.split import split_rows
from deepseek.serve.monitoring.drift import Drift
from deepseek.serve.monitoring.features import of_row
from deepseek.serve.monitoring.profile import make_profile, read_profile

pytestmark = pytest.mark.realdata

RECIPE = Path(__file__).parents[2] / "recipes" / "network_attacks.yaml"
LEFT_OUT = ("difficulty", "label", "path")


class Traffic:
    """The connections as features, which are attacks, and how they are split."""

    def __init__(self) -> None:
        recipe = read_recipe(RECIPE)
        reader = open_data(recipe.data.train, recipe.data)
        samples = [reader.read(place) for place in range(len(reader))]
        self.rows = [of_row({key: cell for key, cell in one.items() if key not in LEFT_OUT}) for one in samples]
        normal = reader.class_names.index("normal")
        self.attack = np.array([one["label"] != normal for one in samples])
        self.fraction, self.seed = recipe.train.val_fraction, recipe.train.seed

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        split = split_rows(len(self.rows), self.fraction, seed)
        return split.train, split.held_out


@pytest.fixture(scope="module")
def traffic(real_data: Path) -> Traffic:
    return Traffic()


@pytest.fixture(scope="module")
def profile(traffic):
    train, _ = traffic.split(traffic.seed)
    rows, normal = [traffic.rows[place] for place in train], (~traffic.attack[train]).tolist()
    return read_profile(make_profile(rows, of="rows", normal=normal))


def test_false_alarms_are_below_half_a_percent_and_most_attacks_are_seen(traffic, profile):
    assert len(profile.features) == 41
    _, held_out = traffic.split(traffic.seed)
    alarms = profile.anomalies.scores([traffic.rows[place] for place in held_out]) > profile.anomalies.threshold
    attack = traffic.attack[held_out]
    false_alarms, detected = alarms[~attack].mean(), alarms[attack].mean()
    print(f"false alarms {false_alarms:.3%} of {(~attack).sum()} normal, detected {detected:.1%} of {attack.sum()}")
    assert false_alarms < 0.005
    assert detected > 0.6


def test_traffic_held_back_has_not_drifted_and_an_attack_wave_has(traffic, profile):
    _, held_out = traffic.split(traffic.seed)
    draw = np.random.default_rng(0)
    drift, alarms = Drift(profile.features), []
    for _ in range(40):
        drift.add([traffic.rows[place] for place in draw.choice(held_out, 250)])
        alarms += [bool(drift.alarms)] if drift.latest else []
    assert len(alarms) == 37 and sum(alarms) == 0
    wave = held_out[traffic.attack[held_out]][:1000]
    drift.add([traffic.rows[place] for place in wave])
    assert {"flag", "service", "serror_rate"} <= set(drift.alarms)
