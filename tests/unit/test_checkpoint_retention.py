"""Which checkpoints stay: held against the rule said another way; removal leaves nothing by halves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.checkpoint.retention import Mode, Retention, Stored, rank, superseded
from deepseek.checkpoint.store import CheckpointStore, list_checkpoints
from deepseek.errors import ConfigError
from deepseek.faults import FaultInjector

values = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=16)


@given(
    st.dictionaries(st.integers(1, 40), values, max_size=12),
    st.integers(1, 4),
    st.integers(0, 4),
    st.none() | st.integers(1, 9),
    st.sampled_from(["min", "max"]),
)
def test_what_goes_is_neither_new_nor_good_nor_for_ever(
    losses: dict[int, float | None], last: int, best: int, every: int | None, mode: Mode
) -> None:
    stored = [
        Stored(Path(f"{step}"), step, {} if losses[step] is None else {"val_loss": losses[step]})  # type: ignore[dict-item]
        for step in sorted(losses, reverse=True)
    ]
    gone = {one.step for one in superseded(stored, Retention(last, best, every, "val_loss", mode))}
    for step, loss in losses.items():
        newer = sum(other > step for other in losses)
        sign = 1 if mode == "min" else -1
        better = [
            other
            for other, value in losses.items()
            if value is not None and loss is not None and (sign * value, other) < (sign * loss, step)
        ]
        kept = newer < last or (loss is not None and len(better) < best) or (every is not None and step % every == 0)
        assert (step in gone) == (not kept)


def test_the_store_keeps_last_best_and_every(tmp_path: Path) -> None:
    losses = {1: 0.9, 2: 0.1, 3: float("nan"), 4: 0.5, 5: 0.2, 6: 0.8, 7: 0.7, 8: float("inf")}
    with CheckpointStore(tmp_path, keep_last=2, keep_best=2, keep_every=4) as store:
        for step, loss in losses.items():
            store.save(step, {"w": torch.tensor(step)}, {"val_loss": loss, "other": 1.0})
        store.wait()
        assert [one.step for one in store.list()] == [8, 7, 5, 4, 2]
        best = store.best()
        assert best is not None and (best.step, best.metrics["val_loss"]) == (2, 0.1)
        assert store.list()[0].metrics == {"other": 1.0}  # an infinite loss is no number to compare
        assert [one.step for one in rank(list(store.list()), "val_loss", "max")] == [7, 4, 5, 2]
    assert CheckpointStore(tmp_path, monitor="val_acc").best() is None


@pytest.mark.parametrize("kind", ["io_error", "delay"])
def test_one_that_cannot_be_removed_is_tried_again(kind: str, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_last=1) as store, FaultInjector("checkpoint.remove", 1, kind, amount=0.0):
        for step in (1, 2, 3):
            store.save(step, {"step": step})
            store.wait()
            assert len(list_checkpoints(tmp_path)) == (2 if (kind, step) == ("io_error", 2) else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_removal_renames_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    from deepseek.checkpoint import retention

    monkeypatch.setattr(retention.shutil, "rmtree", lambda path, **_: seen.append(sorted(os.listdir(tmp_path))))
    with CheckpointStore(tmp_path, keep_last=1, asynchronous=False) as store:
        store.save(1, {})
        store.save(2, {})
    assert [f"step_00000001.tmp-{os.getpid()}", "step_00000002"] in seen
    monkeypatch.undo()
    CheckpointStore(tmp_path).close()
    assert os.listdir(tmp_path) == ["step_00000002"]


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_best": -1}, {"keep_every": 0}, {"mode": "least"}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        CheckpointStore(tmp_path / "none", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
