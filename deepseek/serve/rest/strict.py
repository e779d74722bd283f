"""Strict forms, and what a client is told of a body that does not fit one: the first wrong field, and what it may be.

Fields of OpenAI's interface that this server has no use for are accepted at the value that changes nothing (`NEUTRAL`)
and refused otherwise.
Not here: which forms there are (see `schema`, `tensor_forms`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from deepseek.errors import RequestError, did_you_mean

MAX_FIELDS = 64
"""Fields of one body, known or not."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "dimensions": (),
}
"""Fields of OpenAI's interface without a use here, each with the values that ask for nothing."""


class Form(BaseModel):
    """A strict form: nothing unknown, nothing converted, nothing infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    sections: ClassVar[Mapping[str, type[Form]]] = {}
    """Forms of fields that are objects themselves, so that an unknown field there is told with the nearest known."""


_AnyForm = TypeVar("_AnyForm", bound=Form)


def parse(form: type[_AnyForm], body: Mapping[str, Any]) -> _AnyForm:
    """Return `body` as an OpenAI form. Raises RequestError (400) with the first wrong field named."""
    if len(body) > MAX_FIELDS:
        raise RequestError("too many fields", found=len(body), wanted=f"at most {MAX_FIELDS}")
    known = form.model_fields.keys() | NEUTRAL.keys()
    values = {name: value for name, value in body.items() if not (value is None and name in known)}
    for name in NEUTRAL.keys() & values.keys():
        _refuse_unless_neutral(name, values.pop(name))
    return checked(form, values)


def checked(form: type[_AnyForm], values: Mapping[str, Any]) -> _AnyForm:
    """Return `values` as `form`. Raises RequestError (400) with the first wrong field named."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise _request_error(form, error.errors(include_url=False)[0]) from None


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL[name]):
        accepted = " or ".join(str(neutral) for neutral in NEUTRAL[name])
        raise RequestError(
            f"'{name}' is not supported by this server",
            field=name,
            found=shown(value),
            fix="leave it out" + (f" (only {accepted} is accepted)" if accepted else ""),
        )


def _request_error(form: type[Form], detail: ErrorDetails) -> RequestError:
    location = [str(part)[:64].encode("ascii", "backslashreplace").decode() for part in detail["loc"]]
    name = ".".join(location) or detail["type"]
    if detail["type"] == "extra_forbidden":
        owner = form.sections.get(location[0], form) if len(location) > 1 else form
        return RequestError(f"unknown field '{name}'", field=name, fix=did_you_mean(location[-1], owner.model_fields))
    if detail["type"] == "missing":
        return RequestError(f"'{name}' is missing", field=name, fix=f"add '{name}'")
    wanted = re.sub(r"^(Input|List|String) should (be |have |match )?", "", detail["msg"])
    if detail["type"] in ("dict_type", "model_type"):
        wanted = "an object"
    if not detail["loc"]:
        return RequestError(f"'{name}' does not fit the rest", field=name, wanted=wanted)
    value = detail["input"]
    if detail["type"] in ("too_long", "too_short") and isinstance(value, list | dict):
        return RequestError(f"'{name}' has {len(value)} items", field=name, wanted=wanted.partition(" after ")[0])
    return RequestError(f"'{name}' is {shown(value)}", field=name, wanted=wanted)


def shown(value: Any) -> str:
    """Return a value as an error may show it: short, and plain ASCII."""
    text = f"of type {type(value).__name__}" if isinstance(value, list | dict) else ascii(value)
    return text if len(text) <= 48 else text[:45] + "..."
