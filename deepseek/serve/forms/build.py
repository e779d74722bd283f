"""The form of a bundle: by its task, its pipeline's first stages, and its model's own example.

A bundle without a pipeline, or with one that begins with what no file holds, takes tensors, so that every bundle has a
form. Not here: language models (`deepseek.serve.text` answers for them; their form here is tensors in, tensors out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from deepseek.bundle import Bundle
from deepseek.data.image.normalize import Normalize
from deepseek.data.masking import MaskTokens
from deepseek.data.pipeline.stage import Domain, Stage, StageGroup
from deepseek.data.spell_text import SpellText
from deepseek.data.table_columns import TableColumns
from deepseek.data.tokenize import Tokenize
from deepseek.errors import DataError, RequestError
from deepseek.serve.forms.atoms import AtomsTaker, EnergyGiver
from deepseek.serve.forms.boxes import BoxGiver
from deepseek.serve.forms.calls import Calls, Predicts, example_of, served_least, served_shapes
from deepseek.serve.forms.classes import ClassGiver, ValueGiver
from deepseek.serve.forms.direct import direct_of
from deepseek.serve.forms.form import Form, FormLimits, Giver, Taker
from deepseek.serve.forms.images import ImageTaker
from deepseek.serve.forms.masks import MaskGiver
from deepseek.serve.forms.pairs import PairsTaker, VectorGiver
from deepseek.serve.forms.pictures import LabelTaker, PictureGiver
from deepseek.serve.forms.plain import PlainTask, TensorGiver
from deepseek.serve.forms.rows import RowTaker
from deepseek.serve.forms.sounds import AudioTaker
from deepseek.serve.forms.stages import on_road, serving_stages, starts, written_stages
from deepseek.serve.forms.task_form import TaskForm
from deepseek.serve.forms.tensors import TensorTaker
from deepseek.serve.forms.texts import HiddenTextTaker, TextTaker
from deepseek.serve.forms.volumes import VolumeTaker
from deepseek.serve.forms.words import HiddenGiver, Spelling, TextGiver
from deepseek.tasks.build import build_task

if TYPE_CHECKING:
    from deepseek.serve.tensor.datatypes import ModelSignature

_NEED_MODEL = frozenset({"diffusion", "energies_forces", "seq2seq"})
_PLAIN = frozenset({"language_modeling", "segment_language_modeling"})
_CHANNELS = (1, 3, 4)
_VOLUME_AXES = 5
_Kind = TypeVar("_Kind")


def form_of(bundle: Bundle, limits: FormLimits | None = None, signature: ModelSignature | None = None) -> Form:
    """Return what the bundle's model takes and gives in its natural form. One pass of the model on its own example
    tells how its answer is put together.

    `signature` is that of the runtime that serves it: inputs it lacks are left out, and where it has other sizes than
    the pipeline makes, or the pipeline makes many, the form needs the model. Without one the model's example tells.
    Raises ConfigError where the bundle's task or stages are wrong.
    """
    return _Builder(bundle, limits or FormLimits(), signature).form()


class _Builder:
    """What the parts of a form are chosen by."""

    def __init__(self, bundle: Bundle, limits: FormLimits, signature: ModelSignature | None) -> None:
        self.bundle, self.limits, self.signature = bundle, limits, signature
        self.name = bundle.config.task
        self.labels = bundle.config.labels
        self.written = written_stages(bundle)
        self.stages = serving_stages(self.written)
        self.example: dict[str, Tensor] = example_of(bundle.model)

    def form(self) -> Form:
        task: Predicts = build_task({"name": self.name, **self.bundle.config.task_settings})
        taker = self._taker()
        giver = self._giver(taker)
        if isinstance(giver, TensorGiver) and self.name in _PLAIN:
            task = PlainTask()
        needs_model = self.name in _NEED_MODEL or "memory" in self.example
        needs_model = needs_model or getattr(task, "decoding", None) == "rescore"
        calls = None if needs_model else self._calls(task, taker)
        direct = None if calls is None else direct_of(task, calls, taker, self.signature)
        return TaskForm(task, taker, giver, calls, direct)

    def _calls(self, task: Predicts, taker: Taker) -> Calls | None:
        """Return the calls of the served model; None where its sizes are not those that the pipeline makes.

        A pipeline that leaves pictures as they are was trained on pictures of one size, as batches are: a task of whole
        pictures then wants that size. Maps and masks may be of any.
        """
        model, signature = self.bundle.model, self.signature
        calls = Calls(model, task, served_shapes(model, signature), served_least(model, signature))
        try:
            fit = [calls.fits(calls.inputs(taker.take(one).batch)) for one in taker.probes()]
        except (RequestError, DataError):
            return None
        one_size = taker.takes in ("image", "volume") and self.name not in ("detection", "segmentation")
        return calls if all(fit) or (one_size and fit[0]) else None

    def _taker(self) -> Taker:
        begin, model = starts(self.stages), self.bundle.model
        if self.name == "diffusion":
            return LabelTaker(model, self.labels)
        if self.name == "energies_forces":
            return AtomsTaker(model, self.limits)
        takers = {name: taker for name, taker in self._file_takers(begin).items() if taker is not None}
        if self.name == "contrastive" and takers.keys() & {"text", "image", "audio"}:
            return PairsTaker(takers, self.example, self.limits)
        if self.name == "contrastive" or self.name in _PLAIN or not takers:
            return TensorTaker(model, self.example, self.limits)
        return next(iter(takers.values()))

    def _file_takers(self, begin: set[Domain]) -> Mapping[str, Taker | None]:
        """Return what takes each kind of content that the pipeline begins with."""
        found: dict[str, Taker | None] = {}
        if Domain.ROW in begin:
            found["row"] = self._rows()
        if Domain.WAVEFORM in begin:
            found["audio"] = AudioTaker(on_road(self.stages, Domain.WAVEFORM), self.limits)
        if Domain.IMAGE in begin:
            found["image"] = self._images(on_road(self.stages, Domain.IMAGE))
        if Domain.TEXT in begin:
            found["text"] = self._texts(on_road(self.stages, Domain.TEXT))
        return found

    def _rows(self) -> Taker | None:
        columns = _first(self.stages, TableColumns)
        if columns is None or not columns.is_learned:
            return None
        return RowTaker(on_road(self.stages, Domain.ROW), columns, self.limits)

    def _images(self, stages: Sequence[Stage | StageGroup]) -> Taker | None:
        shapes = [value.shape[1:] for value in self.example.values() if value.is_floating_point() and value.dim() >= 4]
        if not shapes:
            normalize = _first(stages, Normalize)
            channels = len(normalize.mean) if normalize is not None else _CHANNELS[1]
            return ImageTaker(stages, self.limits, channels) if channels in _CHANNELS else None
        if len(shapes[0]) == _VOLUME_AXES - 1:
            return VolumeTaker(stages, self.limits, tuple(shapes[0]))
        channels = shapes[0][0]
        return ImageTaker(stages, self.limits, channels, tuple(shapes[0][1:])) if channels in _CHANNELS else None

    def _texts(self, stages: Sequence[Stage | StageGroup]) -> Taker:
        config: Any = getattr(self.bundle.model, "config", None)
        longest = getattr(config, "max_length", None) or getattr(getattr(config, "text", None), "max_length", None)
        tokenize = _first(stages, Tokenize)
        if self.name == "masked_lm" and tokenize is not None:
            masks = _first(self.written, MaskTokens)
            return HiddenTextTaker(tokenize, masks, self.bundle.tokenizer, self.limits, longest or 1 << 20)
        return TextTaker(stages, self.limits, longest)

    def _giver(self, taker: Taker) -> Giver:
        if self.name in ("classification", "image_classification"):
            return ClassGiver(self.labels)
        if self.name == "regression":
            return ValueGiver()
        if self.name == "detection":
            return BoxGiver(self.labels)
        if self.name == "segmentation":
            return MaskGiver(self.labels)
        if self.name == "speech_recognition":
            return TextGiver(self._spelling(), self.limits)
        if self.name == "seq2seq":
            return TextGiver(self._spelling(), self.limits, writes=True)
        if self.name == "contrastive":
            return VectorGiver()
        if self.name == "energies_forces":
            return EnergyGiver()
        if self.name == "diffusion":
            channels = int(getattr(getattr(self.bundle.model, "config", None), "num_channels", 3))
            return PictureGiver(channels, _first(self.stages, Normalize))
        return HiddenGiver(taker.tokenizer) if isinstance(taker, HiddenTextTaker) else TensorGiver()

    def _spelling(self) -> Spelling | None:
        spell = _first(self.written, SpellText)
        if spell is not None:
            return spell.spelled
        return self.bundle.tokenizer.decode if self.bundle.tokenizer is not None else None


def _first(stages: Sequence[Stage | StageGroup], kind: type[_Kind]) -> _Kind | None:
    return next((one for one in stages if isinstance(one, kind)), None)
