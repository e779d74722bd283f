"""Forms with the engine of fixed shapes: many instances at once, each answered as alone; and what a signature says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.data.image.normalize import Normalize
from deepseek.data.image.resize import Letterbox, Resize
from deepseek.errors import ModelError, RequestError
from deepseek.serve.forms import form_of
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.model import TensorModel
from tests.toy_forms import MODELS, TOKENIZE, WORDS, b64, bundle, file_bytes, picture

CASES: dict[str, tuple[str, list[Any] | None, list[Any]]] = {
    "bert": ("classification", [TOKENIZE], [" ".join(WORDS[: 1 + i]) for i in range(5)]),
    "bert_mlm": ("masked_lm", [TOKENIZE], ["[MASK]", "the [MASK] was", "a street [MASK] we [MASK]"]),
    "clip": (
        "contrastive",
        [TOKENIZE, Resize(size=16), Normalize()],
        [{"texts": ["a", "the room"]}, {"texts": ["it"]}],
    ),
    "mlp": ("regression", None, [[0.1 * i, 1.0, -1.0, 0.0] for i in range(4)]),
    "yolo": ("detection", [Letterbox(size=64)], [file_bytes(picture(40 + 20 * i, 90, i)) for i in range(3)]),
}


def close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            close(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert one == other


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_engines_answers_are_those_of_the_task(tmp_path: Path, name: str) -> None:
    task, stages, instances = CASES[name]
    settings: dict[str, Any] = {"min_score": 0.003, "max_detections": 3} if task == "detection" else {}
    made = bundle(tmp_path / "b", MODELS[name], task, stages, **settings)
    model = TensorModel(made)
    form = form_of(made, signature=model.signature)
    assert not form.needs_model
    engine = TensorEngine(model)

    async def ask() -> list[dict[str, Any]]:
        rows = [form.to_inputs(one) for one in instances]
        outputs = await asyncio.gather(*(engine.infer(row) for row in rows))
        return [form.to_answer(row, output) for row, output in zip(rows, outputs, strict=True)]

    engine.start()
    try:
        answers = asyncio.run(ask())
    finally:
        engine.close(1.0)
    for answer, instance in zip(answers, instances, strict=True):
        close(answer, form.run(made.model, instance))


def test_inputs_that_the_runtime_does_without_are_left_out(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["bert"], "classification", [TOKENIZE])
    ids = TensorSpec("input_ids", "INT64", (-1, -1))
    form = form_of(made, signature=ModelSignature((ids,), (TensorSpec("logits", "FP32", (-1, 3)),)))
    assert set(form.to_inputs("the room")) == {"input_ids"}
    assert set(form_of(made).to_inputs("the room")) == {"input_ids", "attention_mask", "token_type_ids"}


def test_other_sizes_than_the_served_ones_need_the_model(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["resnet"], "image_classification", [Resize(size=32), Normalize()])
    logits = TensorSpec("logits", "FP32", (-1, 3))
    for side, needs_model in ((32, False), (-1, False), (48, True)):
        pixels = TensorSpec("pixel_values", "FP32", (-1, 3, side, side))
        assert form_of(made, signature=ModelSignature((pixels,), (logits,))).needs_model == needs_model


def test_a_pipeline_that_fixes_no_size_needs_the_model(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["yolo"], "image_classification", [Normalize()])
    made.config = made.config.replace(task="detection")
    form = form_of(made)
    assert form.needs_model
    assert form.run(made.model, file_bytes(picture(64, 96)))["width"] == 96
    with pytest.raises(RequestError) as failed:  # no multiple of 32
        form.run(made.model, b64(file_bytes(picture(60, 90))))
    assert (failed.value.status, failed.value.field) == (400, "image")


def test_a_classifier_of_pictures_of_one_size_says_which(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["resnet"], "image_classification", [Normalize()])
    form = form_of(made)
    assert not form.needs_model  # 32 x 32, as all pictures were that it was trained on
    for instance in (form.example(), file_bytes(picture(32, 32))):
        assert form.to_inputs(instance)["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(RequestError) as failed:
        form.to_inputs(file_bytes(picture(48, 32)))
    assert (failed.value.status, failed.value.field) == (400, "image")
    assert "(3, 48, 32)" in str(failed.value) and "(3, 32, 32)" in str(failed.value)


def test_outputs_may_bear_an_exports_names(tmp_path: Path) -> None:
    stages = [{"name": "LogMel", "n_mels": 16}, {"name": "Cepstra", "type": "log_mel"}]
    made = bundle(tmp_path / "b", MODELS["conformer"], "speech_recognition", stages)
    free = (TensorSpec("input_features", "FP32", (-1, -1, 16)), TensorSpec("lengths", "INT64", (-1,)))
    form = form_of(made, signature=ModelSignature(free, ()))
    assert not form.needs_model
    inputs = form.to_inputs(form.example())
    with torch.no_grad():
        out = made.model(torch.from_numpy(inputs["input_features"]), torch.from_numpy(inputs["lengths"]))
    outputs = {"ctc_logits": out.ctc_logits.numpy(), "lengths_out": out.lengths.numpy()}  # `lengths` is an input too
    assert form.to_answer(inputs, outputs) == form.run(made.model, form.example())


def test_an_instance_of_several_rows_needs_all_their_outputs(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["clip"], "contrastive", CASES["clip"][1])
    form = form_of(made)
    inputs = form.to_inputs({"texts": ["a", "the room"]})
    assert {len(value) for value in inputs.values()} == {2}
    with torch.no_grad():
        out = made.model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    named = {"text_embeds": out.text_embeds.numpy(), "image_embeds": out.image_embeds.numpy()}
    assert len(form.to_answer(inputs, named)["vectors"]["text"]) == 2
    with pytest.raises(ModelError, match="all rows"):
        form.to_answer(inputs, {name: value[:1] for name, value in named.items()})


def test_threads_do_not_mix_answers(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["mlp"], "classification")
    form = form_of(made)
    logits = [np.eye(3, dtype=np.float32)[i % 3][None] * 9 for i in range(60)]

    def answer(i: int) -> str:
        return str(form.to_answer(form.to_inputs([0.1, 0.2, 0.3, 0.4]), {"logits": logits[i]})["index"])

    async def together() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(answer, i) for i in range(60)))

    assert asyncio.run(together()) == [str(i % 3) for i in range(60)]
