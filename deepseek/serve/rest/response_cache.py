"""Keys of the response cache: the model's fingerprint and everything that changes the answer, and nothing else.

Only answers that would be the same again are kept: greedy or seeded text, and outputs of fixed-shape models.
Not here: where answers are kept, and which are worth it (see `deepseek.serve.state`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deepseek.serve.rest.schema import ChatForm, CompletionForm
from deepseek.serve.text.prepare import is_repeatable

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.text.engine import Job


class ResponseCache(Protocol):
    """Answers by key. It never fails: what it can't do, it leaves."""

    async def get(self, key: str, /) -> bytes | None:
        """Return an answer, or None."""
        ...

    async def put(self, key: str, body: bytes, /) -> None:
        """Keep an answer."""
        ...


def text_key(hosted: Hosted, jobs: Sequence[Job], form: CompletionForm | ChatForm, kind: str) -> str:
    """Return the key of a text request; `kind` is the form of the answer."""
    asked = [(job.prompt_ids, job.sampling, job.stop, sorted(job.stop_ids), job.logprobs, job.salt) for job in jobs]
    wanted = None if form.response_format is None else form.response_format.model_dump_json(by_alias=True)
    engine: Any = hosted.engine
    computed = (type(engine).__name__, getattr(engine.limits, "weights", None))
    return _digest(hosted, [kind, repr(asked), repr(wanted), repr(computed)])


def is_kept(form: CompletionForm | ChatForm) -> bool:
    """Return whether a text request has the same answer each time, and so may have one that was kept."""
    in_a_session = isinstance(form, ChatForm) and form.session_id is not None
    return not in_a_session and is_repeatable(form)


def tensor_key(hosted: Hosted, inputs: Mapping[str, np.ndarray], wishes: Sequence[object]) -> str:
    """Return the key of an infer request: `wishes` say what is to be answered and how, the client's id says nothing."""
    parts: list[str | bytes] = [repr(wishes)]
    for name in sorted(inputs):
        value = inputs[name]
        data = repr(value.tolist()) if value.dtype == object else np.ascontiguousarray(value).tobytes()
        parts += [repr((name, value.dtype.str, value.shape)), data]
    return _digest(hosted, parts)


def body_key(hosted: Hosted, kind: str, body: bytes) -> str:
    """Return the key of a request by its body, byte for byte."""
    return _digest(hosted, [kind, body])


def _digest(hosted: Hosted, parts: Sequence[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in (hosted.fingerprint, *parts):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
