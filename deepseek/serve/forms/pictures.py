"""Diffusion's instance and answer: a class and a seed, and the picture that the model makes of noise.

The noise is a function of the seed alone. The picture's levels follow from the pipeline's Normalize, undone; without
one, -1 is black and 1 is white, as is usual. Latents (other than 1 or 3 channels) are given as they are.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.data.image.normalize import Normalize
from deepseek.errors import RequestError, did_you_mean
from deepseek.serve.forms.checks import NUMBER, json_number, known_keys, object_schema, shown, type_name, whole_of
from deepseek.serve.forms.form import Gives, Schema, Taken, Takes
from deepseek.serve.forms.images import B64_SCHEMA, png_bytes

_MOST_SEED = 2**63 - 1
_PICTURES = (1, 3)


class LabelTaker:
    """`label`, a class by name or number, where the model has classes; and `seed`, 0 where it is left out."""

    takes: Takes = "label"

    def __init__(self, model: nn.Module, labels: Sequence[str]) -> None:
        config: Any = getattr(model, "config", None)
        self._labels = list(labels)
        self._classes = int(getattr(config, "num_classes", 0))
        side = int(getattr(config, "latent_size", 1))
        self._shape = (1, int(getattr(config, "num_channels", 3)), side, side)
        seed: Schema = {"type": "integer", "minimum": 0, "maximum": _MOST_SEED}
        label: Schema = {"type": ["string", "integer"]}
        wanted = {"label": label, "seed": seed} if self._classes else {"seed": seed}
        self.schema: Schema = object_schema(wanted, ["label"] if self._classes else [])

    def take(self, body: Any) -> Taken:
        """Return `noise`, and `labels` where the model has classes. Raises RequestError."""
        if not isinstance(body, Mapping):
            body = {"label": body}
        known_keys(body, ("label", "seed") if self._classes else ("seed",), "label")
        seed = whole_of(body.get("seed", 0), "seed", 0, _MOST_SEED)
        generator = torch.Generator().manual_seed(seed)
        batch = {"noise": torch.randn(self._shape, generator=generator)}
        if self._classes:
            batch["labels"] = torch.tensor([self._class(body.get("label"))])
        return Taken(batch, {})

    def example(self) -> Any:
        """Return the first class."""
        return {"label": self._labels[0] if self._labels else 0, "seed": 0} if self._classes else {"seed": 0}

    def probes(self) -> Sequence[Any]:
        """Return none: the task calls the model in its own way."""
        return []

    def _class(self, label: object) -> int:
        if isinstance(label, str):
            if label not in self._labels:
                fix = did_you_mean(shown(label), self._labels) if self._labels else "give its number"
                raise RequestError("there is no such class", field="label", found=shown(label), fix=fix)
            return self._labels.index(label)
        if label is None:
            wanted = f"a name, or 0 to {self._classes - 1}"
            raise RequestError("'label' is missing", field="label", found=type_name(label), wanted=wanted)
        return whole_of(label, "label", 0, self._classes - 1)


class PictureGiver:
    """The picture as a PNG file, or the latents as nested lists."""

    gives: Gives
    options: Mapping[str, Schema] = {}

    def __init__(self, channels: int, normalize: Normalize | None) -> None:
        self.gives = "image" if channels in _PICTURES else "tensors"
        self._normalize = normalize if normalize is not None and len(normalize.mean) == channels else None
        picture: Schema = {"image": object_schema({"b64": B64_SCHEMA, "format": {"enum": ["png"]}})}
        latents: Schema = {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": NUMBER}}}
        self.schema: Schema = object_schema(picture if self.gives == "image" else {"latents": latents})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of one sample (1, channels, height, width)."""
        sample: Tensor = prediction[0].float().cpu()
        if self.gives != "image":
            return {"latents": [[[json_number(one) for one in row] for row in plane] for plane in sample.tolist()]}
        levels = (self._shown(sample).nan_to_num(0.0) * 255).round().clamp(0, 255).to(torch.uint8)
        pixels = levels.permute(1, 2, 0).contiguous().numpy()
        data = png_bytes(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        return {"image": {"b64": base64.b64encode(data).decode("ascii"), "format": "png"}}

    def _shown(self, sample: Tensor) -> Tensor:
        """Return levels from 0 to 1."""
        if self._normalize is None:
            return (sample + 1) / 2
        mean, std = (torch.tensor(values)[:, None, None] for values in (self._normalize.mean, self._normalize.std))
        return sample * std + mean
