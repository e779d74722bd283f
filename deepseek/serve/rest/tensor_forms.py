"""What a client may ask of the Open Inference Protocol (KServe v2) and Triton's extensions to it, as strict forms.

Source: the protocol's "REST" part; Triton's extensions `binary_tensor_data`, `model_repository` and `generate`.
An unknown field or parameter is refused with the nearest known name. Not here: whether tensors fit the model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deepseek.serve.rest.schema import Form
from deepseek.serve.tensor.sizes import MAX_DIMS

MAX_TENSORS = 64
"""Inputs or outputs named in one request."""

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Size = Annotated[int, Field(ge=0, le=2**40)]


class InputParameters(Form):
    """What an input may say beside its data."""

    binary_data_size: int | None = Field(None, ge=0, le=2**40)
    """Bytes of this input behind the JSON part of the body."""


class OutputParameters(Form):
    """How an output is wanted."""

    binary_data: bool | None = None
    """Raw bytes behind the JSON part of the answer instead of a list."""


class InferParameters(Form):
    """What a whole request may say."""

    binary_data_output: bool = False
    """Raw bytes for every output that does not say otherwise."""
    timeout: int | None = Field(default=None, ge=1, le=3_600_000_000)
    """Microseconds after which the answer is no longer wanted."""


class InferInput(Form):
    """One input tensor."""

    name: Name
    shape: list[Size] = Field(max_length=MAX_DIMS)
    datatype: Datatype
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class InferOutput(Form):
    """One wanted output."""

    name: Name
    parameters: OutputParameters | None = None


class InferForm(Form):
    """The JSON of `/v2/models/NAME/infer`."""

    id: str | None = Field(None, max_length=256)
    parameters: dict[str, Any] | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[InferOutput] | None = Field(None, max_length=MAX_TENSORS)


class IndexForm(Form):
    """The body of `/v2/repository/index`."""

    ready: bool = False


class LoadForm(Form):
    """The body of `/v2/repository/models/NAME/load` and `unload`."""

    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    share: float | None = Field(default=None, gt=0, le=1)
    """Of a load: the part of the requests that the version takes, beside those that serve; all without it."""


class RepositoryForm(Form):
    """The outer body of loading and unloading."""

    parameters: LoadForm = LoadForm()
