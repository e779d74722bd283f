"""Finding duplicates at once and in a stream: against brute force, and the same however the work is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.cooker.dedup import (
    DedupState,
    NGrams,
    Normalization,
    exact_hashes,
    find_duplicates,
    measure_quality,
    minhash,
)
from deepseek.data.cooker.dedup.clusters import Clusters
from deepseek.data.cooker.dedup.edits import EDITS
from deepseek.data.cooker.dedup.jaccard import jaccard_matrix, jaccard_pairs
from deepseek.data.cooker.dedup.minhash import choose_bands, estimated_jaccard
from deepseek.data.cooker.dedup.quality import plant
from deepseek.errors import ConfigError, DataError

METHODS = ("simhash", "minhash", "exact")


def _texts(count: int, seed: int = 0, length: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{number}" for number in rng.zipf(1.3, length) % 5000) + "." for _ in range(count)]


def test_similarity_is_the_share_of_words_in_common() -> None:
    texts = [*_texts(12), *(" ".join(text.split()[:40]) for text in _texts(6)), "", "w1"]
    sets = [set(text.strip(".").split()) for text in texts]
    wanted = np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])
    assert np.allclose(jaccard_matrix(texts, NGrams()), wanted)
    one, other = np.nonzero(np.ones_like(wanted))
    assert np.allclose(jaccard_pairs(texts, one, other, NGrams()), wanted.ravel())


def test_minhash_estimates_the_similarity() -> None:
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(words[start : start + 200]) for start in range(0, 200, 10)]
    signature = minhash(texts)
    truth = jaccard_matrix(texts, NGrams())[0]
    assert np.abs(estimated_jaccard(signature[:1], signature) - truth).max() < 0.15


def test_bands_find_what_the_threshold_asks_for() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.9, 1.0):
        bands = choose_bands(threshold)
        assert bands.number * bands.rows <= 128
        assert 1 - (1 - threshold**bands.rows) ** bands.number >= 0.98


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
@settings(deadline=None)
def test_clusters_are_connected_components(pairs: list[tuple[int, int]]) -> None:
    label = list(range(30))
    for one, other in pairs:
        low, high = sorted((label[one], label[other]))
        label = [low if value == high else value for value in label]
    clusters = Clusters(30)
    for part in (pairs[:10], pairs[10:]):
        table = np.array(part, dtype=np.int64).reshape(-1, 2)
        clusters.join(table[:, 0], table[:, 1])
    assert clusters.ids.tolist() == label


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_planted_copies_are_found_and_nothing_else(method: str) -> None:
    planted = plant(_texts(300, length=120), 0.2, (0.01, 0.05), seed=1)
    found = find_duplicates(planted.texts, method)  # type: ignore[arg-type]
    copies = planted.sources != np.arange(len(planted.texts))
    together = found.clusters[planted.sources] == found.clusters
    assert together[copies].mean() >= 0.95
    assert found.removed == np.count_nonzero(together & copies)
    assert (found.similarity >= 0.6).all() and (found.pairs[:, 0] < found.pairs[:, 1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_depend_on_the_workers(method: str) -> None:
    texts = plant(_texts(200), 0.3).texts
    one, two = (find_duplicates(texts, method, workers=workers) for workers in (1, 3))  # type: ignore[arg-type]
    for name in ("keep", "clusters", "pairs", "similarity"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


@given(st.sampled_from(METHODS), st.lists(st.integers(0, 160), max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_stream_keeps_the_same_however_it_is_cut(method: str, cuts: list[int]) -> None:
    texts = plant(_texts(120), 0.3, (0.02, 0.1)).texts + ["", "", "!", "w5", "w5"]
    whole = DedupState(method, workers=1)  # type: ignore[arg-type]
    parts = DedupState(method, workers=1)  # type: ignore[arg-type]
    bounds = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    masks = [parts.add(texts[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)]
    assert np.concatenate(masks).tolist() == whole.add(texts).tolist()
    assert parts.seen == len(texts)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_state_goes_on_as_if_it_had_never_stopped(method: str, tmp_path: Path) -> None:
    texts = plant(_texts(150), 0.3).texts
    whole = DedupState(method)  # type: ignore[arg-type]
    wanted = whole.add(texts)
    state = DedupState(method)  # type: ignore[arg-type]
    first = state.add(texts[:90])
    state.save(tmp_path / "state")
    second = DedupState.load(tmp_path / "state").add(texts[90:])
    assert np.concatenate([first, second]).tolist() == wanted.tolist()
    assert 0 < np.count_nonzero(~second)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(DataError, match="state"):
        DedupState.load(path)
    state = DedupState()
    state.add(_texts(5))
    state.save(path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:7], b"", b"PK\x03\x04" + whole, whole.replace(b"simhash", b"simhush")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="state"):
            DedupState.load(path)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert header["__metadata__"]["format"] == "deepseek.dedup.1"


def test_the_first_or_the_longest_stays() -> None:
    base = _texts(1, length=80)[0]
    texts = [base, _texts(1, seed=9)[0], base + " more", base + " even more"]
    assert find_duplicates(texts).keep.tolist() == [True, True, False, False]
    assert find_duplicates(iter(texts), keep="longest").keep.tolist() == [False, True, False, True]
    assert find_duplicates(texts, verify=False).clusters.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_texts_without_a_letter_are_nobodys_duplicates(method: str) -> None:
    assert find_duplicates(["", "", "...", "ab", "AB"], method).keep.tolist() == [True] * 4 + [False]  # type: ignore[arg-type]
    assert find_duplicates([], method).keep.shape == (0,)  # type: ignore[arg-type]


def test_equal_texts_by_what_counts_as_equal() -> None:
    texts = ["Ａ  b\n", "a B", "a b", "ab", "\ud800"]
    assert find_duplicates(texts, "exact").clusters.tolist() == [0, 0, 0, 3, 4]
    assert len(set(exact_hashes(texts, Normalization(False, False, False)))) == 5
    assert len(set(exact_hashes(texts, Normalization(False, True, True)))) == 4


@given(st.sampled_from(sorted(EDITS)), st.floats(0.001, 0.999), st.text(max_size=60), st.integers(0, 99))
@settings(deadline=None)
def test_edits_take_any_text(name: str, rate: float, text: str, seed: int) -> None:
    assert isinstance(EDITS[name](text, rate, np.random.default_rng(seed)), str)


def test_quality_counts_what_was_planted() -> None:
    texts = _texts(200, length=100)
    report = measure_quality([*texts, *texts[:20]], sample=300, share=0.2)
    assert report.texts == 200 and report.planted == 40 and report.duplicates_left == 0.0
    assert [row.threshold for row in report.rows] == [0.4, 0.5, 0.6, 0.7, 0.8]
    chosen = next(row for row in report.rows if row.chosen)
    assert chosen.precision == 1.0 and chosen.recall > 0.9
    assert chosen.f1 == pytest.approx(2 * chosen.recall / (1 + chosen.recall))
    assert set(report.recall_by_edit) == set(EDITS)
    recalls = [row.recall for row in report.rows]
    assert recalls == sorted(recalls, reverse=True)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="method"):
        find_duplicates([], "md5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="method"):
        DedupState("md5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep"):
        find_duplicates([], keep="last")  # type: ignore[arg-type]
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            find_duplicates([], threshold=threshold)
    with pytest.raises(DataError, match="too few"):
        measure_quality(["one text", "two texts"])
    with pytest.raises(ConfigError, match="rates"):
        plant(_texts(3), rates=(0.0,))
    with pytest.raises(ConfigError, match="share"):
        plant(_texts(3), share=2)
