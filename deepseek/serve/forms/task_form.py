"""The form that every task has: a taker, the task's `predict`, a giver; and the options beside an instance.

An instance is the content itself ("a text", {"b64": ...}, a row), or, to ask for something beside it, an object with
the content under its name: {"text": "...", "top_k": 3}, {"row": {...}, "top_k": 3}, {"b64": ..., "mask": "runs"}.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from deepseek.errors import DataError, ModelError, RequestError
from deepseek.serve.forms.calls import Calls, Predicts, run_task
from deepseek.serve.forms.checks import known_keys, object_schema, refused, shown, whole_of
from deepseek.serve.forms.classes import ClassGiver, ValueGiver
from deepseek.serve.forms.direct import Direct
from deepseek.serve.forms.form import Giver, Gives, Row, Schema, Taken, Taker, Takes

_RAW = ("image", "audio", "volume")
_FREE_KEYS = ("row", "tensors")
_NO_OPTIONS_ASKED: Mapping[str, Any] = {}
_NO_OPTIONS = ("atoms", "texts", "label")


class TaskForm:
    """See `deepseek.serve.forms.form.Form`. Without `calls` the form needs the model; `direct` is a shorter way."""

    def __init__(
        self, task: Predicts, taker: Taker, giver: Giver, calls: Calls | None, direct: Direct | None = None
    ) -> None:
        self._task, self._taker, self._giver, self._calls, self._direct = task, taker, giver, calls, direct
        self._arrays: Callable[[Any], dict[str, NDArray[Any]] | None] | None = None
        if direct is not None and direct.inputs:  # the batch is then just what the served model takes
            self._arrays = getattr(taker, "arrays", None)
        self._tell = giver.tell if isinstance(giver, ClassGiver | ValueGiver) else None
        self.takes: Takes = taker.takes
        self.gives: Gives = giver.gives
        self.needs_model = calls is None
        self.request_schema: Schema = _request_schema(taker, giver)
        self.answer_schema: Schema = giver.schema

    def to_inputs(self, instance: Any) -> dict[str, NDArray[Any]]:
        """Return the model's inputs of one instance, a `Row`. Raises RequestError."""
        if self._calls is None:
            raise RequestError(
                f"a model for {self._task.name} answers whole instances, it has no call of fixed shapes",
                status=501,
                fix="send instances to the :predict route",
            )
        if self._arrays is not None:
            arrays = self._arrays(instance)
            if arrays is not None and self._calls.fits(arrays):
                return Row(arrays, None, _NO_OPTIONS_ASKED)
        body, options = self._unwrapped(instance)
        taken = self._taker.take(body)
        if self._direct is not None and self._direct.inputs and taken.batch.keys() == self._calls.shapes.keys():
            inputs = {name: value.numpy() for name, value in taken.batch.items()}
        else:
            try:
                inputs = self._calls.inputs(taken.batch)
            except (DataError, ModelError) as error:
                raise refused(error, self.takes) from error
        if not self._calls.fits(inputs):
            raise RequestError(
                f"'{self.takes}' is of another size than the model takes",
                field=self.takes,
                found={name: value.shape[1:] for name, value in inputs.items()},
                wanted=self._calls.sizes_in_words(),
            )
        return Row(inputs, taken, options)

    def to_answer(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the answer of the model's outputs. Raises ModelError for inputs that `to_inputs` did not make."""
        if not isinstance(inputs, Row) or self._calls is None:
            raise ModelError(
                "an answer needs the inputs that to_inputs returned",
                found=type(inputs).__name__,
                wanted="the very object, a Row: it knows the picture's size",
            )
        if self._direct is not None and self._tell is not None:
            numbers = self._direct.answer(outputs)
            if numbers is not None:
                return self._tell(numbers, inputs.options)
        taken = inputs.taken or Taken({name: torch.from_numpy(value) for name, value in inputs.items()}, {})
        prediction = self._calls.answer(taken.batch, outputs)
        return self._giver.give(prediction, taken.about, inputs.options)

    def run(self, model: nn.Module, instance: Any) -> dict[str, Any]:
        """Return the answer to an instance by the eager model. Raises RequestError."""
        body, options = self._unwrapped(instance)
        taken = self._taker.take(body)
        task = self._task
        if "max_new_tokens" in options:
            changed: Any = copy.copy(task)
            changed.max_new_tokens = options["max_new_tokens"]
            task = changed
        prediction = run_task(task, model, taken.batch, self.takes)
        return self._giver.give(prediction, taken.about, options)

    def example(self) -> Any:
        """Return an instance that can be sent."""
        return self._taker.example()

    def _unwrapped(self, instance: Any) -> tuple[Any, dict[str, Any]]:
        """Return the content and what is asked for beside it. Raises RequestError for an unknown key or value."""
        body, wishes = self._parted(instance)
        if wishes:
            wishes = {name: _option(name, value, self._giver.options[name]) for name, value in wishes.items()}
        return body, wishes

    def _parted(self, instance: Any) -> tuple[Any, dict[str, Any]]:
        name, options = self.takes, self._giver.options
        if not isinstance(instance, dict) or name in _NO_OPTIONS:
            return instance, {}
        if name in instance and (name not in _FREE_KEYS or isinstance(instance[name], Mapping)):
            rest = {key: value for key, value in instance.items() if key != name}
            known_keys(rest, options, "instance")
            return instance[name], rest
        if name in _FREE_KEYS:
            return instance, {}
        known_keys(instance, [name, *(["b64"] if name in _RAW else []), *options], "instance")
        content = {key: value for key, value in instance.items() if key not in options}
        if name == "text":
            raise RequestError(
                "'text' is missing",
                field="text",
                found=[shown(key) for key in list(instance)[:8]],
                wanted='{"text": "..."}',
            )
        return content, {key: value for key, value in instance.items() if key in options}


def _option(name: str, value: Any, schema: Schema) -> Any:
    """Return what is asked for. Raises RequestError where it is not what the schema says."""
    if "enum" in schema:
        if value not in schema["enum"]:
            wanted = ", ".join(map(repr, schema["enum"]))
            raise RequestError(f"'{name}' is none of its values", field=name, found=shown(value), wanted=wanted)
        return value
    return whole_of(value, name, schema["minimum"], schema["maximum"])


def _request_schema(taker: Taker, giver: Giver) -> Schema:
    """Return the schema of an instance in all the ways it may be written."""
    if taker.takes in _NO_OPTIONS:
        return taker.schema
    wrapped = object_schema({taker.takes: taker.schema, **giver.options}, [taker.takes])
    content = taker.schema
    if taker.takes in _RAW:
        content = {**content, "properties": {**content["properties"], **giver.options}}
    return {"anyOf": [content, wrapped]}
