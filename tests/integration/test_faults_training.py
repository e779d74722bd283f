"""Every fault that may hit a training run, and exactly what happens then; `WHERE` lists the test of each.

The faults are planted in real runs of the Trainer by `deepseek.faults`. Those that need processes of their own (kills,
two runs in one folder, workers of a loader) have theirs elsewhere, as the list says.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.checkpoint.store import list_checkpoints, load_checkpoint
from deepseek.data import Loader
from deepseek.errors import NonFiniteLossError, StorageError
from deepseek.faults import FaultInjector, InjectedFault
from deepseek.tasks.supervised import Supervised
from deepseek.train import Trainer
from deepseek.train.first_bad import replay
from tests.command_line import NO_RESTART
from tests.system import child_environment
from tests.toy_gpt import toy_config, write_text
from tests.toy_training import Samples, mlp, pairs, trainer, weights

ROOT = Path(__file__).parents[2]
HERE = "tests/integration/test_faults_training.py"
WHERE = {
    "kill -9 anywhere, inside saves too": [
        "tests/integration/test_kill_anywhere.py::test_killed_anywhere_it_ends_like_a_run_never_disturbed",
        "tests/integration/test_resume.py::test_a_run_killed_again_and_again_ends_as_if_it_never_was",
        "tests/integration/test_checkpoint_writer.py::test_a_trainer_killed_while_its_state_is_written_leaves_the_last_committed",
    ],
    "the process that writes checkpoints dies": [
        "tests/integration/test_kill_anywhere.py::test_a_writer_process_that_dies_in_every_save_costs_checkpoints_and_not_the_run",
        "tests/integration/test_checkpoint_writer.py::test_a_killed_writer_is_told_and_replaced",
    ],
    "disk full, failing or read-only in a save": [
        f"{HERE}::test_a_disk_that_refuses_a_while_costs_checkpoints_and_not_the_run",
        f"{HERE}::test_a_disk_that_refuses_the_last_save_is_an_error_that_keeps_the_older_ones",
        "tests/integration/test_resume.py::test_a_disk_full_for_a_while_costs_a_checkpoint_and_not_the_run",
        "tests/integration/test_resume.py::test_an_output_folder_that_cannot_be_written_is_refused_before_training",
    ],
    "a damaged newest checkpoint": [
        "tests/unit/test_trainer_resume.py::test_damaged_checkpoints_are_skipped_by_name_and_if_all_are_the_run_is_refused",
        "tests/unit/test_checkpoint_store.py::test_a_damaged_checkpoint_is_skipped_and_the_reason_said",
    ],
    "a checkpoint of another model": [
        "tests/unit/test_trainer_resume.py::test_a_checkpoint_of_another_model_is_refused_and_kept",
    ],
    "power cut: the order of syncs and renames": [
        "tests/integration/test_checkpoint_writer.py::test_the_system_sees_syncs_before_the_rename",
        "tests/unit/test_checkpoint_store.py::test_everything_is_synced_before_it_gets_its_name",
    ],
    "SIGTERM and Ctrl-C": [
        f"{HERE}::test_a_signal_lets_the_step_finish_saves_and_the_run_goes_on",
        f"{HERE}::test_a_second_signal_ends_the_run_at_once",
        f"{HERE}::test_a_process_that_is_terminated_twice_ends_at_once",
        f"{HERE}::test_the_command_line_ends_with_a_code_that_says_why_and_goes_on",
        "tests/integration/test_resume.py::test_sigterm_does_what_ctrl_c_does",
    ],
    "NaN in the loss or the gradients": [
        f"{HERE}::test_a_bad_step_is_skipped_and_counted",
        f"{HERE}::test_a_run_that_stays_bad_stops_names_the_culprit_and_keeps_the_step",
        f"{HERE}::test_a_run_that_stays_bad_can_roll_back_instead",
        "tests/unit/test_train_step.py::test_a_bad_batch_changes_no_weight_and_ten_in_a_row_end_the_run",
        "tests/unit/test_train_step.py::test_overflows_halve_the_scale_until_a_step_fits",
        "tests/unit/test_faults_first_bad.py::test_an_operator_of_the_forward_pass_is_named",
        "tests/unit/test_faults_first_bad.py::test_an_operator_of_the_backward_pass_is_named_with_the_layer_it_belongs_to",
    ],
    "out of memory in a step": [
        f"{HERE}::test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts",
        "tests/unit/test_memory_recovery.py::test_a_step_that_ran_out_of_memory_does_the_same_update",
    ],
    "an error in the data, the step or a validation": [f"{HERE}::test_an_unexpected_error_ends_the_run_and_it_goes_on"],
    "a loader's worker dies, hangs or raises": [
        "tests/integration/test_loader_workers.py::test_a_lost_worker_is_named_with_its_work",
        "tests/integration/test_loader_workers.py::test_under_retry_another_worker_takes_over_and_the_order_stays",
        "tests/integration/test_loader_workers.py::test_a_worker_killed_from_outside_is_noticed",
    ],
    "the clock jumps": [f"{HERE}::test_a_clock_that_jumps_changes_nothing"],
    "two runs in one folder": [
        "tests/integration/test_resume.py::test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives",
        "tests/unit/test_files.py::test_a_lock_of_another_host_stays",
    ],
}

STEPS = 12


def run(folder: Path, **changes: Any) -> Trainer:
    """Return a run of 12 steps with dropout, a checkpoint every third and a row of metrics for each."""
    settings: dict[str, Any] = {
        "model_config": toy_config(dropout=0.2),
        "train_dataset": Loader(Samples(), 4, seed=1),
        "output_dir": folder,
        "max_steps": STEPS,
        "checkpoint_every": 3,
        "log_every": 1,
    }
    return trainer(**{**settings, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Return a run that nothing disturbed."""
    undisturbed = run(tmp_path_factory.mktemp("whole") / "run")
    undisturbed.train()
    return undisturbed


def steps_on_disk(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(folder / "checkpoints")]


def assert_same(first: Trainer, second: Trainer) -> None:
    assert torch.equal(weights(first.model), weights(second.model))


def test_the_list_names_tests_that_exist() -> None:
    for fault, tests in WHERE.items():
        for test in tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{fault}: {test}"


@pytest.mark.parametrize(("kind", "number"), [("term", signal.SIGTERM), ("interrupt", signal.SIGINT)])
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_signal_lets_the_step_finish_saves_and_the_run_goes_on(
    kind: str, number: int, whole: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = run(tmp_path)
    with FaultInjector("step.backward", 5, kind):
        result = stopped.train()
    assert (result.steps, result.interrupted, result.signal) == (5, True, number)
    assert steps_on_disk(tmp_path)[0] == 5 and not (tmp_path / "bundle").exists()
    assert f"stopped at step 5 of {STEPS}" in caplog.text and "--resume" in caplog.text
    rest = run(tmp_path)
    assert rest.train(resume=True).steps == STEPS
    assert_same(rest, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_second_signal_ends_the_run_at_once(whole: Trainer, tmp_path: Path) -> None:
    stopped = run(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with FaultInjector("step.begin", 5, "term"), FaultInjector("step.update", 5, "term"):
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    assert steps_on_disk(tmp_path) == [3] and not (tmp_path / ".lock").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    rest = run(tmp_path)
    rest.train(resume=True)
    assert_same(rest, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_process_that_is_terminated_twice_ends_at_once(tmp_path: Path) -> None:
    script = f"from tests.integration.test_faults_training import run; run({str(tmp_path)!r}).train()"
    environment = child_environment(DEEPSEEK_FAULT="step.begin:5:term,step.forward:5:term,step.update:5:delay:60")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode not in (0, -signal.SIGKILL) and "KeyboardInterrupt" in done.stderr
    assert time.monotonic() - started < 60 and steps_on_disk(tmp_path) == [3]


RECIPE = """\
name: first
data: {train: text.jsonl, vocab_size: 280}
model: {name: GPT, max_length: 16, num_layers: 1, d_model: 16, num_heads: 2}
train: {max_steps: 8, batch_size: 2, compile: false, precision: fp32, checkpoint_every: 4, tensorboard: false}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_the_command_line_ends_with_a_code_that_says_why_and_goes_on(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl", documents=40)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for arguments, fault, code, said in (
        (["recipe.yaml"], "step.begin:3:term", 75, "deepseek train --resume runs/first"),
        (["--resume", "runs/first"], "step.begin:3:interrupt", 130, "deepseek train --resume runs/first"),
        (["--resume", "runs/first"], "", 0, "done in"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deepseek.cli", "train", *arguments],
            cwd=tmp_path,
            env=child_environment(DEEPSEEK_FAULT=fault, **NO_RESTART),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code and said in done.stdout, (done.returncode, done.stdout, done.stderr)
    assert (tmp_path / "runs" / "first" / "bundle").is_dir()


@pytest.mark.parametrize("site", ["step.backward", "step.update"])
def test_a_bad_step_is_skipped_and_counted(site: str, tmp_path: Path) -> None:
    disturbed = run(tmp_path)
    with FaultInjector(site, 4, "nan", every=5) as injector:  # steps 4 and 9
        result = disturbed.train()
    assert injector.fired == result.skipped_steps == 2 and result.steps == STEPS
    assert bool(weights(disturbed.model).isfinite().all())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bad = [row["step"] for row in rows if "lr" in row and not math.isfinite(row["grad_norm"] or math.nan)]
    assert bad == [4, 9]


def poisoned(first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    """Return 40 batches; in those from `first` to before `last` one number is NaN."""
    batches = [pairs()[index % 10] for index in range(40)]
    for index in range(first, last):
        inputs, targets = batches[index]
        spoiled = inputs.clone()
        spoiled[3, 1] = math.nan
        batches[index] = spoiled, targets
    return batches


def poisoned_run(folder: Path, first: int, last: int, **settings: Any) -> Trainer:
    return trainer(
        model=mlp(),
        task=Supervised(torch.nn.CrossEntropyLoss()),
        train_dataset=poisoned(first, last),
        output_dir=folder,
        max_steps=24,
        checkpoint_every=4,
        **settings,
    )


def test_a_run_that_stays_bad_stops_names_the_culprit_and_keeps_the_step(tmp_path: Path) -> None:
    disturbed = poisoned_run(tmp_path, 6, 40)
    with pytest.raises(NonFiniteLossError) as raised:
        disturbed.train()
    message = str(raised.value)
    assert "10 steps in a row" in message and "the batch itself, before anything ran, micro-batch 0: 0" in message
    assert "0.0156 of it not finite" in message and str(tmp_path / "bad_step") in message
    assert steps_on_disk(tmp_path)[0] == 12  # good weights: no bad step changed any
    state = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[0])
    assert all(bool(value.isfinite().all()) for name, value in state["model"].items() if "running" not in name)
    found = replay(tmp_path / "bad_step", mlp().train(), Supervised(torch.nn.CrossEntropyLoss()))
    assert found.where in ("batch", "buffers") and found.found


def test_a_run_that_stays_bad_can_roll_back_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disturbed = poisoned_run(tmp_path, 6, 16, on_nonfinite="roll_back")
    result = disturbed.train()
    assert (result.steps, result.rollbacks) == (24, 1) and bool(weights(disturbed.model).isfinite().all())
    assert "rolled back to step" in caplog.text and math.isfinite(result.losses[-1])


def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    for faulty in (False, True):
        one = run(tmp_path / str(faulty), model_config=toy_config(dropout=0.0))
        with FaultInjector("step.forward", 4 if faulty else 10**6, "out_of_memory") as injector:
            result = one.train()
        assert (result.steps, result.skipped_steps, injector.fired) == (STEPS, 0, int(faulty))
        results.append(weights(one.model))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=0)
    assert "memory" in caplog.text


@pytest.mark.parametrize("site", ["data.next", "step.begin", "step.update", "validation"])
def test_an_unexpected_error_ends_the_run_and_it_goes_on(site: str, whole: Trainer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"val_dataset": Loader(Samples(), 4, seed=2), "validate_every": 2}
    undisturbed = run(tmp_path / "whole", **settings)
    undisturbed.train()
    broken = run(tmp_path / "run", **settings)
    with FaultInjector(site, 4, "exception"), pytest.raises(InjectedFault, match=f"at {site}"):
        broken.train()
    assert steps_on_disk(tmp_path / "run")[0] == (8 if site == "validation" else 3)
    rest = run(tmp_path / "run", **settings)
    rest.train(resume=True)
    assert_same(rest, undisturbed)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("kind", "code"), [("disk_full", errno.ENOSPC), ("io_error", errno.EIO), ("read_only", errno.EROFS)]
)
def test_a_disk_that_refuses_a_while_costs_checkpoints_and_not_the_run(
    kind: str, code: int, asynchronous: bool, whole: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disturbed = run(tmp_path, async_checkpoints=asynchronous, keep_checkpoints=9)
    with caplog.at_level(logging.WARNING), FaultInjector("checkpoint.fsync", 4, kind) as injector:
        result = disturbed.train()
    assert injector.fired == 1 and result.steps == STEPS and not result.interrupted
    assert steps_on_disk(tmp_path) == [12, 9, 3]  # that of step 6 is missing, nothing else
    assert caplog.text.count("training goes on") == 1 and os.strerror(code) in caplog.text
    assert_same(disturbed, whole)
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_refuses_the_last_save_is_an_error_that_keeps_the_older_ones(
    asynchronous: bool, tmp_path: Path
) -> None:
    disturbed = run(tmp_path, async_checkpoints=asynchronous)
    with FaultInjector("checkpoint.write", 10, "disk_full", every=1), pytest.raises(StorageError) as raised:
        disturbed.train()
    assert raised.value.errno == errno.ENOSPC and "free some space" in str(raised.value)
    assert steps_on_disk(tmp_path) == [9, 6] and not (tmp_path / "bundle").exists()
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.parametrize("hours", [-30.0, 30.0])
def test_a_clock_that_jumps_changes_nothing(hours: float, whole: Trainer, tmp_path: Path) -> None:
    disturbed = run(tmp_path)
    with FaultInjector("step.begin", 3, "clock_jump", every=3, amount=hours * 3600) as injector:
        result = disturbed.train()
    assert injector.fired == 4 and 0 < result.seconds < 3600 and result.steps == STEPS
    assert_same(disturbed, whole)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and seconds[-1] < 3600
    assert steps_on_disk(tmp_path) == [12, 9]
    budget = run(tmp_path / "budget", max_steps=30, time_budget=3600.0)
    with FaultInjector("step.begin", 2, "clock_jump", every=2, amount=hours * 3600):
        assert budget.train().steps == 30
