"""Classes and values without tensors: what the task itself says, or the task is asked."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import deepseek as ds
from deepseek.data.table_columns import TableColumns
from deepseek.serve.forms import build as forms_build
from deepseek.serve.forms import form_of
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec
from deepseek.tasks.classification import Classification
from tests.toy_forms import LABELS, MODELS, bundle

COLUMNS = TableColumns(
    numeric=("size", "weight"),
    categorical=("colour",),
    means=(1.0, 2.0),
    stds=(1.0, 0.5),
    categories=(("blue", "red"),),
    one_hot=True,
)


def signature(outputs: int) -> ModelSignature:
    return ModelSignature((TensorSpec("features", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, outputs)),))


def made(folder, task, outputs, settings=None, stages=()):
    """Return a bundle's form with the direct way, and the same form without."""
    config = {**MODELS["mlp"], "num_labels": outputs, "input_shape": [4 if not stages else 5]}
    labels = LABELS if task == "classification" and outputs == 3 else ()
    one = bundle(folder, config, task, list(stages), labels=labels, **(settings or {}))
    given = signature(outputs)
    if stages:
        given = given._replace(inputs=(TensorSpec("features", "FP32", (-1, 5)),))
    form = form_of(one, signature=given)
    plain = copy.copy(form)
    plain._direct = plain._arrays = plain._tell = None
    return form, plain


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    ("task", "outputs", "settings"),
    [
        ("classification", 3, {}),
        ("classification", 1, {}),
        ("classification", 2, {}),
        ("regression", 1, {"shift": 5.0, "scale": 0.25}),
        ("regression", 2, {}),
    ],
)
def test_the_direct_answer_is_that_of_the_task(tmp_path, task, outputs, settings, scale):
    form, plain = made(tmp_path, task, outputs, settings)
    assert form._direct is not None and form._direct.inputs
    draws = np.random.default_rng(0)
    for _ in range(20):
        instance = {"features": draws.normal(size=4).tolist()}
        row, same = form.to_inputs(instance), plain.to_inputs(instance)
        assert row.keys() == same.keys()
        np.testing.assert_array_equal(row["features"], same["features"])
        outs = {"logits": draws.normal(0, scale, (1, outputs)).astype(np.float32)}
        found, wanted = form.to_answer(row, outs), plain.to_answer(same, outs)
        assert found.keys() == wanted.keys()
        if "values" in wanted:
            assert found["values"] == pytest.approx(wanted["values"], rel=1e-5, abs=1e-6)
            continue
        assert [one["score"] for one in found["classes"]] == pytest.approx(
            [one["score"] for one in wanted["classes"]], rel=1e-5, abs=1e-6
        )
        by_name = {one["label"]: one["index"] for one in wanted["classes"]}
        assert {one["label"]: one["index"] for one in found["classes"]} == by_name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_to_the_task(tmp_path, value):
    form, plain = made(tmp_path, "classification", 3)
    row = form.to_inputs({"features": [0, 1, 2, 3]})
    outs = {"logits": np.array([[0.0, value, 1.0]], np.float32)}
    assert str(form.to_answer(row, outs)) == str(plain.to_answer(plain.to_inputs({"features": [0, 1, 2, 3]}), outs))


@pytest.mark.parametrize("bad", [[1, 2, 3, "x"], [1, 2, 3, True], [1, 2, 3, 1e400], [1, 2, math.nan, 4], [], None])
def test_what_is_no_list_of_numbers_is_refused_as_ever(tmp_path, bad):
    form, plain = made(tmp_path, "classification", 3)
    errors = []
    for one in (form, plain):
        with pytest.raises(ds.errors.RequestError) as caught:
            one.to_inputs({"features": bad})
        errors.append((str(caught.value), caught.value.field, caught.value.status))
    assert errors[0] == errors[1]


def test_top_k_and_a_tensor_under_its_name(tmp_path):
    form, _ = made(tmp_path, "classification", 3)
    outs = {"logits": np.array([[0.0, 2.0, 1.0]], np.float32)}
    row = form.to_inputs({"tensors": {"features": [0, 1, 2, 3]}, "top_k": 2})
    assert [one["label"] for one in form.to_answer(row, outs)["classes"]] == [LABELS[1], LABELS[2]]


def test_a_task_that_answers_otherwise_is_asked(tmp_path, monkeypatch):
    class Sharper(Classification):
        def predict(self, model, inputs):
            return (super().predict(model, inputs) ** 2).float()

    monkeypatch.setattr(forms_build, "build_task", lambda _: Sharper())
    form, _ = made(tmp_path, "classification", 3)
    assert form._direct is None


def test_a_row_by_the_columns_alone_is_that_of_the_pipeline(tmp_path):
    form, _ = made(tmp_path, "classification", 3, stages=[COLUMNS])
    taker = form._taker
    assert taker._alone
    for row in ({"size": 1, "weight": None, "colour": "red"}, {"size": -3.5, "weight": 2, "colour": "pink"}):
        quick = taker.take(row).batch
        sample = {"row": {**row, "weight": math.nan if row["weight"] is None else row["weight"]}}
        whole = taker._road.batch([sample], "row")
        assert quick.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(quick[name], value) and quick[name].dtype == value.dtype
