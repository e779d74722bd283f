"""Text out of an exported generation model: the loop around the steps that `generation_export.py` writes.

The tokens are chosen by the same code as in PyTorch (`deepseek.models.generation`). Not here: tokenizers, serving.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import ExportError, ModelError
from deepseek.export.generation_export import CROSS_DECODER, DECODER, ENCODER, SETTINGS
from deepseek.export.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime
from deepseek.models.generation import LogitsProcessor, SamplingConfig, stream_ids
from deepseek.models.seq2seq_generation import CachedDecoder, decoded

_PAST, _PRESENT = "past_key_values.", "present."


class ExportedGenerator:
    """A folder that `export_generation` wrote, in ONNX Runtime or OpenVINO; `generate` is that of the model."""

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        """Raises ExportError if the folder holds no such export, MissingExtraError without [export]."""
        path = Path(folder)
        if not (path / SETTINGS).is_file():
            raise ExportError(f"there is no exported generation model at {path}", fix="write it with export_generation")
        self.settings: dict[str, int] = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        self._encoder = _open(path, ENCODER, threads)
        decoder = _open(path, DECODER if self._encoder is None else CROSS_DECODER, threads)
        if decoder is None:
            raise ExportError(f"the export at {path} is not whole", fix="export the model again")
        self._decoder = decoder

    def generate(
        self,
        inputs: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        logits_processor: Iterable[LogitsProcessor] = (),
        **settings: object,
    ) -> Tensor:
        """Return token ids (batch, time + new) of int64, as the model's own `generate` does.

        `inputs`: the prompt's ids (batch, time), or what the encoder reads (ids, or a spectrogram); `attention_mask`
        for its ids, `decoder_input_ids` for an answer's beginning. The likeliest token is taken each time, up to 128
        times, unless `settings` (the fields of SamplingConfig) say otherwise. Raises ModelError where the text outgrows
        the model, ConfigError for a wrong setting.
        """
        sampling = SamplingConfig(**{"do_sample": False, **self._usual(), **settings})
        if self._encoder is None:
            self._check_room(inputs.shape[1], sampling)
            new = list(stream_ids(self._bound({}), inputs, sampling, logits_processor))
            return torch.cat([inputs, torch.stack(new, dim=1)], dim=1)
        bound = _encoded(self._encoder, inputs, attention_mask)
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((inputs.shape[0], 1), self.settings["decoder_start_token_id"])
        self._check_room(decoder_input_ids.shape[1] - 1, sampling)  # the last token is not read again
        return decoded(self._bound(bound), decoder_input_ids, sampling, self.settings["pad_token_id"], logits_processor)

    def _usual(self) -> dict[str, Any]:
        eos = self.settings.get("eos_token_id")
        return {} if eos is None or self._encoder is None else {"eos_id": eos}

    def _check_room(self, prompt: int, sampling: SamplingConfig) -> None:
        longest = self.settings.get("max_length")
        if longest is not None and prompt + sampling.max_new_tokens > longest:
            raise ModelError(
                "prompt and answer are longer than the model's context",
                found=f"{prompt} + {sampling.max_new_tokens} tokens",
                wanted=f"at most max_length = {longest} together",
                fix="shorten the prompt or lower max_new_tokens",
            )

    def _bound(self, bound: dict[str, Tensor]) -> CachedDecoder:
        """Return the decoder as generation wants it, its cache a dict of tensors that a step replaces."""

        def step(ids: Tensor, cache: Any) -> Tensor:
            found = self._decoder.run({"input_ids": ids, **bound, **cache})
            cache.update({n.replace(_PRESENT, _PAST): t for n, t in found.items() if n.startswith(_PRESENT)})
            return found["logits"]

        def new_cache(batch_size: int, capacity: int) -> Any:
            return {
                spec.name: torch.zeros(batch_size, *(size if isinstance(size, int) else 0 for size in spec.shape[1:]))
                for spec in self._decoder.signature.inputs
                if spec.name.startswith(_PAST) and spec.name not in bound
            }

        return CachedDecoder(step, new_cache)


def _encoded(encoder: Runtime, inputs: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """Return what each step of the decoder reads of the encoder."""
    names = [spec.name for spec in encoder.signature.inputs]
    given = {name: inputs for name in names if name != "attention_mask"}
    bound = {}
    if "attention_mask" in names:
        given["attention_mask"] = torch.ones_like(inputs) if attention_mask is None else attention_mask.long()
        bound["encoder_attention_mask"] = given["attention_mask"]
    found = encoder.run(given)
    return bound | {n.replace(_PRESENT, _PAST): tensor for n, tensor in found.items() if n.startswith(_PRESENT)}


def _open(folder: Path, stem: str, threads: int | None) -> Runtime | None:
    if (folder / f"{stem}.onnx").is_file():
        return OnnxRuntime(folder / f"{stem}.onnx", threads)
    if (folder / f"{stem}.xml").is_file():
        return OpenVinoRuntime(folder / f"{stem}.xml", threads)
    return None
