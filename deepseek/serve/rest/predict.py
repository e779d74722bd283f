"""`POST /v1/models/NAME:predict`: instances in a model's natural form to predictions, or one raw body to one.

The route's name and its fields `instances` and `predictions` are those of TensorFlow Serving's REST API.
Not here: what an instance looks like (see `deepseek.serve.forms`) and how rows are batched (see the engine).
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from deepseek.errors import DeepSeekError, RequestError
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.body import TENSOR_BODY_LIMIT, load_json, parse_json, read_body, require_json
from deepseek.serve.rest.json_bytes import dump_arrays
from deepseek.serve.rest.leases import lease, note
from deepseek.serve.rest.reply import Reply
from deepseek.serve.rest.response_cache import body_key
from deepseek.serve.rest.shortcut import SHORT_BODY, AtOnce
from deepseek.serve.rest.signature_form import SignatureForm
from deepseek.serve.rest.target import Target
from deepseek.serve.security.urls import Fetcher

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from deepseek.serve.forms import Form
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

_LOG = logging.getLogger("deepseek.serve")
MAX_INSTANCES = 256
"""Instances of one request."""
MAX_URLS = 8
"""Instances of one request that are named by URL, where the server fetches any."""
RAW_TYPES: Mapping[str, frozenset[str]] = {
    "image": frozenset({"image/png", "image/jpeg", "image/gif", "image/bmp", "image/webp", "application/octet-stream"}),
    "audio": frozenset(
        {"audio/wav", "audio/x-wav", "audio/wave", "audio/flac", "audio/ogg", "application/octet-stream"}
    ),
    "volume": frozenset({"application/octet-stream"}),
}
"""Content types of a body that is itself the instance, by what the model takes."""
_FIELDS = frozenset({"instances"})
_AT_ONCE = frozenset({"tensors", "row"})


class Forms:
    """The form of each served model, built at its first use."""

    def __init__(self) -> None:
        self._forms: WeakKeyDictionary[Hosted, Form] = WeakKeyDictionary()

    def of(self, hosted: Hosted) -> Form:
        """Return the form of a model's instances and predictions."""
        form = self._forms.get(hosted)
        if form is None:
            form = self._forms[hosted] = _form_of(hosted)
        return form


class Predict:
    """The route."""

    def __init__(self, service: Service, helpers: Helpers, forms: Forms, fetcher: Fetcher | None = None) -> None:
        self._service = service
        self._helpers = helpers
        self._forms = forms
        self._fetcher = fetcher or Fetcher()

    async def predict(self, scope: Scope, receive: Receive, name: str, version: str | None) -> Reply:
        """Answer instances with predictions."""
        with lease(self._service, name, version) as hosted:
            note(scope["state"], hosted)
            if hosted.kind == "text":
                raise RequestError(
                    f"the model '{hosted.name}' is a language model",
                    field="model",
                    fix="POST /v1/completions or /v1/chat/completions",
                )
            form = self._forms.of(hosted)
            if not form.needs_model:
                hosted.engine.gate()
            body = await read_body(scope, receive, TENSOR_BODY_LIMIT)
            content_type = _content_type(scope)
            cache = self._helpers.cache
            if cache is None:
                return Reply(await self._answer(hosted, form, content_type, body), "application/json")
            key = body_key(hosted, f"predict {content_type}", body)
            answer = await cache.get(key)
            if answer is None:
                answer = await self._answer(hosted, form, content_type, body)
                await cache.put(key, answer)
            return Reply(answer, "application/json")

    def at_once(self, scope: Scope, name: str, version: str | None) -> AtOnce | None:
        """Return what answers one short instance in JSON, where the model runs as soon as it arrives."""
        if _content_type(scope) != "application/json":
            return None

        target = Target(self._service, name, version, self._short_form)

        def answer(body: bytes) -> bytes | None:
            found = target.find() if len(body) <= SHORT_BODY else None
            if found is None:
                return None
            hosted, form = found
            engine = hosted.engine
            engine.gate()
            instances = _listed(parse_json(body, finite=True)) if engine.runs_at_once else ()
            if len(instances) != 1:
                return None
            row = _row(form, instances[0], 0)
            outputs = engine.run_now(row)
            if outputs is None:
                return None
            self._watch(hosted, instances, (row,), (outputs,))
            return _dumped(hosted, [form.to_answer(row, outputs)])

        return answer

    def _short_form(self, hosted: Hosted) -> Form | None:
        """Return a model's form where its instances become inputs in no time."""
        form = None if hosted.kind == "text" else self._forms.of(hosted)
        return None if form is None or form.needs_model or form.takes not in _AT_ONCE else form

    async def _answer(self, hosted: Hosted, form: Form, content_type: str, body: bytes) -> bytes:
        instances = await _instances(form, content_type, body)
        if form.takes in RAW_TYPES:
            instances = await _fetched(instances, self._fetcher)
        if form.takes in _AT_ONCE and len(body) <= SHORT_BODY and not form.needs_model:
            rows = [_row(form, instance, index) for index, instance in enumerate(instances)]
            outputs = await _infer(hosted, rows)
            self._watch(hosted, instances, rows, outputs)
            predictions = list(map(form.to_answer, rows, outputs))
        elif form.needs_model:
            predictions = await asyncio.to_thread(_run, hosted, form, instances)
        else:
            rows = await asyncio.to_thread(lambda: [_row(form, item, index) for index, item in enumerate(instances)])
            outputs = await _infer(hosted, rows)
            self._watch(hosted, instances, rows, outputs)
            predictions = await asyncio.to_thread(
                lambda: [form.to_answer(row, output) for row, output in zip(rows, outputs, strict=True)]
            )
        return _dumped(hosted, predictions)

    def _watch(
        self,
        hosted: Hosted,
        instances: Sequence[Any],
        rows: Sequence[dict[str, np.ndarray]],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        """Have the instances compared with the training data."""
        if self._helpers.watches is not None and hosted.profile is not None:
            for instance, row, output in zip(instances, rows, outputs, strict=True):
                self._helpers.watches.see(hosted, instance, row, output)


async def _instances(form: Form, content_type: str, body: bytes) -> Sequence[Any]:
    """Return the instances of a request: of a JSON body, or the body itself."""
    if content_type in RAW_TYPES.get(form.takes, ()):
        return [body]
    if content_type != "application/json":
        require_json(content_type)
    return _listed(await load_json(body, finite=True) if len(body) > SHORT_BODY else parse_json(body, finite=True))


def _listed(values: dict[str, Any]) -> Sequence[Any]:
    """Return the instances of a JSON body. Raises RequestError."""
    for name in values:
        if name not in _FIELDS:
            shown = ascii(name)[1:-1][:64]
            raise RequestError(f"unknown field '{shown}'", field=shown, fix='send {"instances": [...]}')
    instances = values.get("instances")
    if type(instances) is not list or not 1 <= len(instances) <= MAX_INSTANCES:
        found = f"{len(instances)} of them" if type(instances) is list else type(instances).__name__
        raise RequestError(
            "'instances' is no list of instances", field="instances", found=found, wanted=f"1 to {MAX_INSTANCES}"
        )
    return instances


def _dumped(hosted: Hosted, predictions: list[dict[str, Any]]) -> bytes:
    return dump_arrays({"predictions": predictions, "model": hosted.name, "version": hosted.version})


async def _fetched(instances: Sequence[Any], fetcher: Fetcher) -> Sequence[Any]:
    """Return the instances with the content of what they name by {"url": ...} in its place, as {"b64": ...}."""
    named = [index for index, one in enumerate(instances) if type(one) is dict and "url" in one]
    if not named:
        return instances
    if len(named) > MAX_URLS:
        raise RequestError("too many URLs", field="instances", found=len(named), wanted=f"at most {MAX_URLS}")
    found = list(instances)
    for index in named:
        given = dict(instances[index])
        try:
            content = await asyncio.to_thread(fetcher.get, given.pop("url"), TENSOR_BODY_LIMIT)
        except RequestError as error:
            raise _placed(error, index) from error
        found[index] = {**given, "b64": base64.b64encode(content).decode("ascii")}
    return found


def _row(form: Form, instance: Any, index: int) -> dict[str, np.ndarray]:
    try:
        return form.to_inputs(instance)
    except RequestError as error:
        raise _placed(error, index) from error


def _run(hosted: Hosted, form: Form, instances: Sequence[Any]) -> list[dict[str, Any]]:
    """Return predictions that take more than one call of the model."""
    if hosted.bundle is None:
        raise RequestError("this model answers through its engine only", status=501)
    predictions = []
    for index, instance in enumerate(instances):
        try:
            predictions.append(form.run(hosted.bundle.model, instance))
        except RequestError as error:
            raise _placed(error, index) from error
    return predictions


async def _infer(hosted: Hosted, rows: Sequence[dict[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """Return each row's outputs. Rows of one shape go to the engine together, others side by side."""
    engine = hosted.engine
    if len(rows) == 1:
        outputs = engine.run_now(rows[0])
        return [await engine.infer(rows[0]) if outputs is None else outputs]
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        shape = _shape_of(row) if engine.signature.batch_axis else None
        groups.setdefault(index if shape is None else shape, []).append(index)
    asked = []
    for members in groups.values():
        names = rows[members[0]].keys()
        asked.append(engine.infer({name: np.concatenate([rows[index][name] for index in members]) for name in names}))
    answers = await asyncio.gather(*asked)
    found: list[Mapping[str, np.ndarray]] = [{} for _ in rows]
    for members, outputs in zip(groups.values(), answers, strict=True):
        if len(members) == 1:  # an instance may be several rows, and has outputs that are no rows
            found[members[0]] = outputs
            continue
        for place, index in enumerate(members):
            found[index] = {name: value[place : place + 1] if value.ndim else value for name, value in outputs.items()}
    return found


def _shape_of(row: Mapping[str, np.ndarray]) -> Any:
    """Return what rows that go together have in common; None for an instance that is several rows."""
    if any(value.ndim == 0 or len(value) != 1 for value in row.values()):
        return None
    return tuple((name, value.shape, value.dtype) for name, value in row.items())


def _placed(error: RequestError, index: int) -> RequestError:
    """Return an instance's error with its place in the request."""
    field = f"instances.{index}" + (f".{error.field}" if error.field else "")
    problem, status = error.problem, error.status
    return RequestError(problem, field=field, status=status, found=error.found, wanted=error.wanted, fix=error.fix)


def _content_type(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"content-type":
            text: str = value.decode("latin-1").strip().lower()
            return text if text.startswith("application/json") else text.partition(";")[0].strip()
    return ""


def _form_of(hosted: Hosted) -> Form:
    if hosted.bundle is None:
        return SignatureForm(hosted.engine.signature)
    from deepseek.serve.forms import form_of

    try:
        return form_of(hosted.bundle, signature=hosted.engine.signature)
    except DeepSeekError as error:  # its tensors can be sent all the same
        _LOG.warning("the model '%s' takes tensors only: %s", hosted.name, error)
        return SignatureForm(hosted.engine.signature)
