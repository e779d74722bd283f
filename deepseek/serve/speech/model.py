"""What streaming needs of a speech bundle: its Conformer, the stages of sound, and how tokens are spelled.

Not here: a stream's state (see `recognizer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from deepseek.bundle import Bundle
from deepseek.data.pipeline.stage import Domain, Stage, StageGroup
from deepseek.data.spell_text import SpellText
from deepseek.errors import ConfigError, ModelError, RequestError
from deepseek.models.conformer import Conformer
from deepseek.models.conformer_stream import ConformerStream
from deepseek.serve.forms.stages import on_road, serving_stages, written_stages
from deepseek.serve.speech.features import check_stages


class SpeechModel(NamedTuple):
    """A model that can stream."""

    conformer: Conformer
    stages: Sequence[Stage | StageGroup]
    spell: Callable[[list[int]], str]

    @property
    def blank_id(self) -> int:
        """CTC's blank."""
        return self.conformer.config.decoder.blank_id


def speech_model(bundle: Bundle | None) -> SpeechModel:
    """Return what streams of a bundle. Raises RequestError (501) where it can't stream, with the reason."""
    model = None if bundle is None else bundle.model
    if bundle is None or not isinstance(model, Conformer):
        raise RequestError(
            "this model does not recognise speech in a stream", field="model", status=501, wanted="a Conformer's bundle"
        )
    written = written_stages(bundle)
    stages = on_road(serving_stages(written), Domain.WAVEFORM)
    try:
        check_stages(stages)
        ConformerStream(model)
    except (ConfigError, ModelError) as error:
        problem = f"this model can't stream: {error.problem}"
        raise RequestError(
            problem, field="model", status=501, found=error.found, wanted=error.wanted, fix=error.fix
        ) from error
    return SpeechModel(model, stages, _spelling(bundle, written))


def can_stream(bundle: Bundle) -> bool:
    """Return whether a bundle recognises speech in a stream."""
    try:
        speech_model(bundle)
    except RequestError:
        return False
    return True


def _spelling(bundle: Bundle, written: Sequence[Stage | StageGroup]) -> Callable[[list[int]], str]:
    for stage in written:
        if isinstance(stage, SpellText):
            return stage.spelled
    if bundle.tokenizer is not None:
        return bundle.tokenizer.decode
    return lambda tokens: " ".join(map(str, tokens))
