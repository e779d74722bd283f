"""The choice of a runtime: accuracy first, then time; written whole, and measured anew when the machine changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepseek as ds
from deepseek.errors import BundleError, ConfigError, ExportError, StorageError
from deepseek.evaluate.latency import Latency
from deepseek.export import chosen, export_onnx, tune
from deepseek.export.choice import Choice, Row, with_front
from deepseek.export.chosen import choose_runtime, load_choice
from deepseek.export.fingerprint import differences, fingerprint
from deepseek.export.quality import Deviation
from deepseek.export.runtimes.runtime import Runtime, Settings
from deepseek.export.signature import Signature, TensorSpec
from deepseek.models import build

pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")

TOYS = Path(__file__).parent.parent / "toys"
TIMES = {"eager": 10.0, "onnxruntime": 4.0, "openvino": 5.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("choice") / "bundle"
    model = build(TOYS / "mlp.yaml").eval()
    ds.save(model, path, task="classification")
    export_onnx(model, path / "exports" / "model.onnx")
    torch.manual_seed(1)
    export_onnx(build(TOYS / "mlp.yaml").eval(), path / "other.onnx")
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def told_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Times in ms by runtime and form, instead of measured ones; the answers are real."""
    times = dict(TIMES)

    def told(runtimes: Sequence[Any], inputs: object, **limits: object) -> list[Latency]:
        found = [times[getattr(runtime, "told_name", "eager")] for runtime in runtimes]
        return [Latency(ms, ms, ms, ms, 9) for ms in found]

    opened = chosen.open_runtime

    def named(name: str, source: Any, **options: Any) -> Runtime:
        runtime = opened(name, source, **options)
        form = name + (" int8" if "int8" in str(source) else "")
        runtime.told_name = form  # type: ignore[attr-defined]
        return runtime

    monkeypatch.setattr(chosen, "open_runtime", named)
    monkeypatch.setattr(chosen, "measure_in_turn", told)
    monkeypatch.setattr(chosen, "measure", lambda runtime, inputs, **limits: told([runtime], inputs)[0])
    monkeypatch.setattr(tune, "measure_in_turn", told)
    monkeypatch.setattr(tune, "measure", lambda runtime, inputs, **limits: told([runtime], inputs)[0])
    return times


def rows_of(choice: Choice) -> dict[tuple[str, str], Row]:
    return {(row.runtime, row.precision): row for row in choice.rows}


def test_the_fastest_that_answers_alike_wins(bundle: Path, told_times: dict[str, float]) -> None:
    choice = choose_runtime(bundle, runtimes=["eager", "onnxruntime"], precisions=["fp32"])
    assert (choice.winner.runtime, choice.winner.file) == ("onnxruntime", "exports/model.onnx")
    assert choice.winner.speedup == pytest.approx(2.5) and choice.winner.status == "chosen"
    assert choice.winner.deviation is not None and choice.winner.deviation.relative_error < 1e-5
    assert list(choice.shapes.values()) == [[1, 1, 6, 6]]
    stored = json.loads((bundle / "exports" / "runtime.json").read_text(encoding="utf-8"))
    assert stored["winner"]["runtime"] == "onnxruntime" and stored["machine"] == fingerprint()
    again = load_choice(bundle)
    assert again == choice and again.remeasured == ()
    example: dict[str, Tensor] = ds.load(bundle, device="cpu").model.example_inputs(1)  # type: ignore[operator]
    assert again.open(bundle).run(example).keys() == {"logits"}


def test_a_fast_form_that_answers_differently_is_refused(bundle: Path, told_times: dict[str, float]) -> None:
    shutil.copy(bundle / "other.onnx", bundle / "exports" / "model.onnx")
    choice = choose_runtime(bundle, runtimes=["onnxruntime"], precisions=["fp32"])
    row = rows_of(choice)["onnxruntime", "fp32"]
    assert choice.winner.runtime == "eager"
    assert row.status == "refused" and "output 'logits' is off by" in row.reason


def test_integers_slower_than_floats_are_refused_and_named(bundle: Path, told_times: dict[str, float]) -> None:
    shutil.copy(bundle / "exports" / "model.onnx", bundle / "exports" / "model.int8.onnx")
    told_times["onnxruntime int8"] = 6.0
    choice = choose_runtime(bundle, runtimes=["onnxruntime"], precisions=["fp32", "int8"])
    row = rows_of(choice)["onnxruntime", "int8"]
    assert (row.status, row.reason) == ("refused", "1.50 times the time of fp32 in onnxruntime")
    assert choice.winner.precision == "fp32"
    told_times["onnxruntime int8"] = 2.0
    assert choose_runtime(bundle, runtimes=["onnxruntime"], precisions=["int8"]).winner.precision == "int8"


def test_a_worse_task_figure_decides_where_the_signal_does_not(bundle: Path, told_times: dict[str, float]) -> None:
    shutil.copy(bundle / "other.onnx", bundle / "exports" / "model.int8.onnx")
    told_times["onnxruntime int8"] = 1.0
    for accuracy, status in ((0.895, "chosen"), (0.8, "refused")):
        answers = iter([0.9, 0.9, accuracy])  # of the model itself, of eager as a runtime, of the file

        def metric(model: nn.Module, answers: Iterator[float] = answers) -> dict[str, float]:
            return {"loss": 1.0, "accuracy": next(answers)}

        choice = choose_runtime(bundle, runtimes=["onnxruntime"], precisions=["int8"], metric=metric)
        row = rows_of(choice)["onnxruntime", "int8"]
        assert row.status == status and row.figure is not None and row.figure.value == accuracy
    assert "accuracy is 10.0% worse" in row.reason


def test_what_can_not_run_says_why(bundle: Path, told_times: dict[str, float]) -> None:
    choice = choose_runtime(bundle, runtimes=["static", "onnxruntime", "onnxruntime:dml"])
    reasons = {key: row.reason for key, row in rows_of(choice).items() if row.status == "not run"}
    assert reasons["static", "fp32"] == "the bundle has no such file in exports"
    assert reasons["onnxruntime", "bf16"].startswith("'onnxruntime' computes in what its file says")
    assert "lacks the provider 'dml' (it has cpu" in reasons["onnxruntime:dml", "fp32"]


def test_what_must_compile_is_tried_last(bundle: Path, told_times: dict[str, float]) -> None:
    said: list[str] = []
    choose_runtime(
        bundle, runtimes=["inductor", "onnxruntime"], precisions=["fp32", "bf16"], seconds=1e-9, say=said.append
    )
    assert [line.partition(":")[0] for line in said] == [
        "eager fp32",
        "onnxruntime fp32",
        "onnxruntime bf16",
        "inductor fp32",
        "inductor bf16",
    ]
    assert [("the time was up" in line) for line in said] == [False] * 3 + [True] * 2, (
        "what is loaded quickly always runs"
    )


def test_another_machine_or_file_is_measured_anew(bundle: Path, told_times: dict[str, float]) -> None:
    quick: dict[str, Any] = {"runtimes": ["eager"], "precisions": ["fp32"]}
    assert load_choice(bundle, **quick).remeasured[0].endswith("can't be read as a choice of runtime")
    assert load_choice(bundle, **quick).remeasured == ()
    place = bundle / "exports" / "runtime.json"
    stored = json.loads(place.read_text(encoding="utf-8"))
    stored["machine"]["physical_cores"] = 999
    place.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ExportError, match="physical_cores: 999, now"):
        load_choice(bundle, remeasure=False)
    assert load_choice(bundle, **quick).remeasured[0].startswith("physical_cores: 999, now")
    (bundle / "exports" / "model.onnx").write_bytes(b"shorter")
    assert load_choice(bundle, **quick).remeasured[0].startswith("exports/model.onnx:")
    place.write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match="can't be read as a choice"):
        load_choice(bundle, remeasure=False)


def test_bad_places(
    bundle: Path, tmp_path: Path, told_times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick: dict[str, Any] = {"runtimes": ["eager"], "precisions": ["fp32"]}
    with pytest.raises(BundleError, match="does not exist"):
        choose_runtime(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no time"):
        choose_runtime(bundle, seconds=0)
    choose_runtime(bundle, **quick)
    before = (bundle / "exports" / "runtime.json").read_bytes()

    def full(*places: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError):
            choose_runtime(bundle, **quick)
    assert (bundle / "exports" / "runtime.json").read_bytes() == before
    assert not list((bundle / "exports").glob("*.tmp*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *question: False)
        with pytest.raises(StorageError, match="can't be written to"):
            choose_runtime(bundle, **quick)


def test_the_front_has_what_nothing_beats_in_everything() -> None:
    def row(name: str, speedup: float, size: int, snr: float, status: Any = "kept") -> Row:
        return Row(name, "fp32", status, speedup=speedup, bytes=size, deviation=Deviation(0, 0, snr, "x"))

    rows = [row("a", 1, 100, 60), row("b", 2, 100, 60), row("c", 3, 30, 40), row("d", 2, 40, 40), row("e", 9, 1, 60)]
    rows[4] = rows[4]._replace(status="refused")
    assert [one.runtime for one in with_front(rows) if one.on_front] == ["b", "c"]


def test_an_infinite_error_survives_its_file() -> None:
    row = Row("a", "fp32", deviation=Deviation(float("inf"), float("inf"), -200.0, "x"), latency=Latency(1, 2, 3, 4, 5))
    assert Row.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False))) == row


def test_the_fingerprint_is_the_machines_and_stays() -> None:
    first = fingerprint()
    assert differences(first, fingerprint()) == []
    assert (
        first["runtimes"]["torch"] == torch.__version__.partition("+")[0]
        or first["runtimes"]["torch"] == torch.__version__
    )
    assert first["physical_cores"] >= 1 and first["cpu"]
    assert differences({"a": 1, "b": 2}, {"b": 3}) == ["a: 1, now None", "b: 2, now 3"]
    json.dumps(first)


class Pretended:
    """A runtime whose time its settings decide."""

    signature = Signature((TensorSpec("x", torch.float32, ("batch", 3)),), ())

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    @property
    def ms(self) -> float:
        return 10.0 / (self.settings.threads or 1) * (0.5 if self.settings.sizes else 1.0)


def test_tuning_keeps_what_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(runtimes: Sequence[Pretended], inputs: object, **limits: object) -> list[Latency]:
        return [Latency(one.ms, one.ms, one.ms, one.ms, 9) for one in runtimes]

    def opener(settings: Settings) -> Runtime:
        if settings.threads == 3:
            raise ExportError("no three")
        return Pretended(settings)

    monkeypatch.setattr(tune, "measure_in_turn", told)
    monkeypatch.setattr(tune, "measure", lambda runtime, inputs, **limits: told([runtime], inputs)[0])
    monkeypatch.setattr(tune, "physical_cores", lambda: 4)
    inputs = {"x": torch.zeros(2, 3)}
    tuned = tune.tune(opener, inputs, kind="onnxruntime", seconds=30)
    assert tuned.settings == Settings(threads=4, sizes={"batch": 2}), "spinning off wins nothing"
    assert tuned.speedup == pytest.approx(8) and tuned.complete
    assert not tune.tune(opener, inputs, kind="onnxruntime", seconds=0.0).complete
    assert tune.tune(opener, inputs, kind="eager", seconds=30).settings == Settings(threads=4)
    assert tune.thread_counts(6) == [6, 4, 3, 2, 1] and tune.thread_counts(1) == [1]
