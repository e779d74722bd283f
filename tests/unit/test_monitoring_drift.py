"""Drift and anomalies: limits against scipy, rates of false alarms against their promise, changes against none."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deepseek.errors import BundleError
from deepseek.serve import Service
from deepseek.serve.monitoring.anomaly import FALSE_ALARMS, Anomalies
from deepseek.serve.monitoring.drift import Drift, chi_square, poisson_limit
from deepseek.serve.monitoring.features import of_inputs, of_outputs, of_row
from deepseek.serve.monitoring.histogram import Histogram
from deepseek.serve.monitoring.profile import make_profile, read_profile
from deepseek.serve.monitoring.watch import Watch, Watches
from tests.fake_tensor import LoneInput

VALUES = st.lists(
    st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, -1.0])) | st.sampled_from(["a", "b", ""]), max_size=80
)


def table(count, seed=0, shift=0.0, colors=(0.6, 0.3, 0.1), missing=0.05):
    """Rows of a normal number, one that is mostly zero, one of long tail, one that may be missing, and a color."""
    draw = np.random.default_rng(seed)
    return [
        {
            "normal": float(normal + shift),
            "mostly_zero": float(spike * (draw.random() < 0.02)),
            "tail": float(math.exp(2 * tail)),
            "sometimes": None if draw.random() < missing else float(normal),
            "color": str(draw.choice(["red", "green", "blue"], p=colors)),
        }
        for normal, spike, tail in draw.normal(size=(count, 3))
    ]


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 31, 64])
@pytest.mark.parametrize("level", [1e-2, 1e-4, 1e-6])
def test_the_chi_square_limit_is_hardly_ever_too_low(freedom, level):
    exact = stats.chi2.isf(level, freedom)
    assert exact * 0.98 <= chi_square(1 - level, freedom) <= exact * (1.04 if freedom > 5 else 1.16)


@pytest.mark.parametrize("mean", [0.0, 0.1, 1.0, 5.0, 50.0, 2000.0])
@pytest.mark.parametrize("level", [1e-2, 1e-4, 1e-6])
def test_a_poisson_count_is_above_its_limit_as_seldom_as_it_is_said(mean, level):
    limit = poisson_limit(mean, level)
    assert stats.poisson.sf(limit, mean) <= level * 1.05
    assert limit <= mean + 6 * math.sqrt(mean + 4) + 14  # and the limit is of use
    if mean:  # of a count that was seen: the mean that would give so few with that probability is not above
        assert stats.chi2.isf(level, 2 * mean + 2) / 2 <= limit * 1.02 + 0.1


@given(values=VALUES, later=VALUES)
@settings(max_examples=200, deadline=None)
def test_each_value_is_in_one_bin_and_the_bins_outlive_a_file(values, later):
    histogram = Histogram.of(values)
    assert histogram.counts.sum() == len(values)
    assert (histogram.places(values) < histogram.bins).all()
    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert again.places(later).tolist() == histogram.places(later).tolist()
    assert again.counts.tolist() == histogram.counts.tolist()
    if histogram.edges is not None and len(histogram.edges):
        known = [one for one in values if isinstance(one, float) and math.isfinite(one)]
        for place, edge in enumerate(histogram.edges):
            assert histogram.counts[: place + 1].sum() == sum(one <= edge for one in known)


def windows(profile, rows, **options):
    drift = Drift(profile.features, **options)
    alarms = []
    for start in range(0, len(rows), 100):
        drift.add(rows[start : start + 100])
        if drift.latest and start % 200 == 0:
            alarms.append(drift.alarms)
    return drift, alarms


def test_traffic_like_the_training_data_gives_no_alarm():
    profile = read_profile(make_profile(table(4000), of="rows"))
    for window in (200, 500):
        _, alarms = windows(profile, table(20_000, seed=1), window=window, hop=200)
        assert len(alarms) > 90 and sum(map(bool, alarms)) <= 1  # promised: one in a thousand


def test_limits_follow_the_size_of_both_samples():
    small, large = (read_profile(make_profile(table(count), of="rows")) for count in (300, 4000))
    assert sum(map(bool, windows(small, table(10_000, seed=2), window=200, hop=200)[1])) <= 1
    limits = [
        windows(profile, table(400, seed=2), window=200, hop=200)[0].latest["normal"].ks_limit
        for profile in (small, large)
    ]
    assert limits[0] > limits[1]


@pytest.mark.parametrize(
    ("changed", "features"),
    [
        ({"shift": 0.5}, {"normal"}),
        ({"colors": (0.2, 0.2, 0.6)}, {"color"}),
        ({"missing": 0.5}, {"sometimes"}),
    ],
)
def test_what_changed_is_named(changed, features):
    profile = read_profile(make_profile(table(4000), of="rows"))
    drift, _ = windows(profile, table(1000, seed=3, **changed), window=1000)
    assert set(drift.alarms) == features


def test_values_that_training_never_had_are_named():
    profile = read_profile(make_profile(table(4000), of="rows"))
    rows = table(1000, seed=3)
    for row in rows[::20]:
        row["color"] = "violet"
    drift, _ = windows(profile, rows, window=1000)
    assert drift.alarms == ["color"] and drift.latest["color"].rare == pytest.approx(0.05)


def test_the_index_is_that_of_its_formula():
    before = ["a"] * 700 + ["b"] * 300
    drift = Drift({"x": Histogram.of(before)}, window=100, hop=100)
    drift.add([{"x": "a"}] * 40 + [{"x": "b"}] * 60)
    expected = (0.4 - 0.7) * math.log(0.4 / 0.7) + (0.6 - 0.3) * math.log(0.6 / 0.3)
    assert drift.latest["x"].psi == pytest.approx(expected, rel=0.02) and drift.alarms == ["x"]


def test_the_distance_is_scipys():
    draw = np.random.default_rng(0)
    before, now = np.round(draw.normal(size=2000), 1), np.round(draw.normal(0.3, 1, 500), 1)
    drift = Drift({"x": Histogram.of(before.tolist())}, window=500)
    drift.add([{"x": value} for value in now.tolist()])
    exact = stats.ks_2samp(before, now).statistic
    assert exact * 0.7 <= drift.latest["x"].ks <= exact + 1e-12


def test_anomalies_are_seldom_among_normal_rows_and_frequent_among_others():
    rows = table(4000)
    made = Anomalies.of(rows)
    again = Anomalies.from_json(json.loads(json.dumps(made.to_json())))
    fresh = table(6000, seed=5)
    scores = made.scores(fresh)
    assert np.array_equal(again.scores(fresh), scores) and again.threshold == made.threshold
    assert (scores > made.threshold).mean() < 2 * FALSE_ALARMS
    strange = [{**row, "normal": 40.0, "color": "violet"} for row in table(200, seed=6)]
    assert (made.scores(strange) > made.threshold).mean() > 0.95
    assert set(made.unusual(strange[0], 2)) == {"normal", "color"}
    assert Anomalies.of(rows[:1999]) is None
    assert Anomalies.of([{"same": 1.0}] * 3000).scores([{"same": 1.0}, {}]).tolist() == [0.0, 0.0]


def test_features_of_what_models_take_and_give():
    x = np.array([[1.0, math.nan], [3.0, 4.0]], dtype=np.float32)
    ids = np.array([[5, 5, 7, 0] * 8, [1] * 32])
    image = np.arange(2 * 3 * 4 * 8, dtype=np.float32).reshape(2, 3, 4, 8)
    text = np.array(["abcdé", ""], dtype=object)
    first, second = of_inputs({"x": x, "kind": np.array([[2], [3]]), "ids": ids, "image": image, "text": text})
    assert second["x[1]"] == 4.0 and math.isnan(first["x[1]"])
    assert (first["kind[0]"], first["ids.length"], first["ids.variety"]) == ("2", 24.0, 2 / 24)
    assert first["image.mean"] == image[0].mean() and second["image.high"] == image.max()
    assert (first["text.length"], first["text.ascii"]) == (5.0, 0.8)
    logits = np.array([[0.0, math.log(3)], [5.0, 0.0]], dtype=np.float32)
    (one, other) = of_outputs({"logits": logits, "value": np.array([7.0, 8.0]), "count": np.array([1, 2])})
    assert one["logits.confidence"] == pytest.approx(0.75) and one["logits.class"] == "1"
    assert (other["logits.class"], other["value"]) == ("0", 8.0) and "count" not in one
    assert of_outputs({"p": np.array([[0.25, 0.75]])})[0]["p.confidence"] == 0.75
    assert of_row({"a": 1, "b": True, "c": None, "d": "x"}) == {"a": 1.0, "b": "True", "c": None, "d": "x"}


def test_a_damaged_profile_is_refused():
    good = make_profile(table(50), of="rows")
    assert good["anomalies"] is None and read_profile(good).rows == 50
    edges = good["features"]["normal"]["edges"]
    for wrong in (
        {},
        {**good, "version": 9},
        {**good, "features": []},
        {**good, "features": {"x": {"edges": edges[::-1], "counts": good["features"]["normal"]["counts"]}}},
        {**good, "features": {"x": {"names": ["a"], "counts": [1]}}},
        {**good, "anomalies": {"threshold": 1, "columns": [{"name": "a"}], "centres": [[1, 2]]}},
    ):
        with pytest.raises(BundleError, match="damaged"):
            read_profile(wrong)
    with pytest.raises(BundleError, match="no training data"):
        make_profile([])


def test_requests_are_watched_beside_the_server(caplog):
    hosted = Service({"lone": LoneInput()}).hosted["lone"]
    watches = Watches()
    row = np.zeros((1, 4), dtype=np.float32)
    watches.see(hosted, None, {"x": row}, {})  # no profile: nothing happens
    assert watches.of(hosted) is None and list(watches.samples()) == []
    watches = Watches()
    values = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    hosted.profile = make_profile([{"x": values}], [{"y": values}])
    with caplog.at_level(logging.WARNING, "deepseek.serve"):
        for start in range(0, 1200, 50):
            watches.see(hosted, None, {"x": values[start : start + 50] + 3}, {"y": values[start : start + 50]})
        watches.flush()
    watches.close()
    told = {name: value for name, labels, value in watches.samples() if labels == ("lone",)}
    assert told["deepseek_watched_total"] == 1200 and told["deepseek_drift_alarms"] == 4
    assert told["deepseek_anomalies_total"] > 1000 and "drifted from its training data: x[0]" in caplog.text


def test_a_full_queue_leaves_requests_out_and_a_wrong_profile_is_told(caplog):
    watch = Watch(read_profile(make_profile(table(50), of="rows")), "t")
    rows = table(1100, seed=1)
    assert not watch.offer(None, {}, {})  # it has no natural form
    assert sum(watch.offer(row, {}, {}) for row in rows) == 1024 and watch.left_out == 76
    while watch.work():
        pass
    assert watch.watched == 1024
    images = np.zeros((2, 3, 64, 64), dtype=np.float32)
    watch = Watch(read_profile(make_profile([{"image": images}])))
    large = {"image": np.zeros((1, 3, 1024, 1024), dtype=np.float32)}  # 12 MB: two fit
    assert [watch.offer(b"x", large, {}) for _ in range(3)] == [True, True, False]
    while watch.work():
        pass
    assert watch.offer(b"x", large, {}) and watch.left_out == 1
    hosted = Service({"lone": LoneInput()}).hosted["lone"]
    hosted.profile = {"version": 7}
    with caplog.at_level(logging.WARNING, "deepseek.serve"):
        Watches().see(hosted, None, {}, {})
    assert "drift of 'lone' is not watched" in caplog.text
