"""A form: how an instance as people have it becomes a model's inputs, and its outputs an answer that is plain JSON.

A form is made of two halves: a taker (instance to a batch of one sample) and a giver (the task's prediction to the
answer). Between them stands the task's own `predict`; nothing of it is done a second time here.
Not here: the halves (one file each), building a form for a bundle (`build`), HTTP and batching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

Takes = Literal["text", "image", "audio", "volume", "row", "tensors", "texts", "atoms", "label"]
"""What an instance is. "texts": texts, images and sounds side by side; "label": what to make a picture of."""

Gives = Literal["classes", "values", "boxes", "mask", "text", "tokens", "vectors", "energies", "image", "tensors"]
"""What an answer is."""

Schema = dict[str, Any]
"""A JSON schema (draft 2020-12)."""


class FormLimits(NamedTuple):
    """What an instance may hold at most; more is refused with 413 before anything is decoded."""

    image_pixels: int = 50_000_000
    image_bytes: int = 64 << 20
    audio_seconds: float = 600.0
    audio_bytes: int = 256 << 20
    text_characters: int = 100_000
    numbers: int = 16_000_000
    """Numbers in tensors and volumes."""
    atoms: int = 1_000
    rows: int = 64
    """Texts, or images, or sounds to compare in one instance."""
    new_tokens: int = 1_024
    """Tokens of a text that is written."""


class Taken(NamedTuple):
    """What a taker made of an instance."""

    batch: dict[str, Tensor]
    """Of one row, under the names that the task reads."""
    about: dict[str, Any]
    """What the giver needs to know: the picture's size, where tokens are hidden."""


class Row(dict[str, NDArray[Any]]):
    """A model's inputs by name, the batch axis first; `taken` and `options` are what the answer is made with.

    Without `taken` the inputs are the batch.
    """

    __slots__ = ("options", "taken")

    def __init__(self, inputs: Mapping[str, NDArray[Any]], taken: Taken | None, options: Mapping[str, Any]) -> None:
        super().__init__(inputs)
        self.taken = taken
        self.options = options


class Taker(Protocol):
    """Instances to samples."""

    takes: Takes
    schema: Schema
    """Of the instance without options."""

    def take(self, body: Any) -> Taken:
        """Return the batch of one instance. Raises RequestError with the field named."""
        ...

    def example(self) -> Any:
        """Return an instance that can be sent."""
        ...

    def probes(self) -> Sequence[Any]:
        """Return instances of several sizes: do they all become inputs of one shape? None where clients decide."""
        ...


class Giver(Protocol):
    """Predictions to answers."""

    gives: Gives
    schema: Schema
    options: Mapping[str, Schema]
    """What an instance may ask for beside its content."""

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of a prediction, plain JSON values."""
        ...


class Form(Protocol):
    """What a model takes and gives, from its bundle alone; made by `deepseek.serve.forms.form_of`."""

    takes: Takes
    gives: Gives
    request_schema: Schema
    """Of one instance. A raw body (bytes) is an instance too where the form takes an image, audio or a volume."""
    answer_schema: Schema
    """Of one prediction."""
    needs_model: bool
    """Only `run` gives an answer, on the eager model: it takes more than one call, or inputs of sizes that the served
    signature does not have."""

    def to_inputs(self, instance: Any) -> dict[str, NDArray[Any]]:
        """Return the model's inputs of one instance, a `Row` of one row ("texts": as many as there are texts).

        Raises RequestError (400, 413, 415) with the field named; 501 where the form needs the model.
        """
        ...

    def to_answer(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the answer. `inputs`: what `to_inputs` returned, the very object: it knows the picture's size and
        what was asked for. `outputs`: by the names of the signature. Raises ModelError for other inputs."""
        ...

    def run(self, model: nn.Module, instance: Any) -> dict[str, Any]:
        """Return the answer to an instance by the eager model, on whose device the inputs are put.

        Raises RequestError, also for what the model refuses.
        """
        ...

    def example(self) -> Any:
        """Return an instance that can be sent."""
        ...
