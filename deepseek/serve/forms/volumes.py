"""Volumes as instances: an NPY file of numbers, or NIfTI-1, as a raw body or in base64.

Sources: the NPY format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; NIfTI-1,
https://nifti.nimh.nih.gov/nifti-1. NPY files with objects inside are never opened: they would be unpickled.
"""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from deepseek.data.pipeline.stage import Stage, StageGroup
from deepseek.data.volume.nifti import read_nifti
from deepseek.errors import DataError, RequestError
from deepseek.serve.forms.checks import TOO_LARGE, WRONG_KIND, bytes_of, object_schema
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes
from deepseek.serve.forms.images import B64_SCHEMA
from deepseek.serve.forms.stages import Road

_BYTES = 4


class VolumeTaker:
    """A volume through the pipeline's stages."""

    takes: Takes = "volume"

    def __init__(self, stages: Sequence[Stage | StageGroup], limits: FormLimits, sides: tuple[int, ...]) -> None:
        self._road, self._limits, self._sides = Road(stages), limits, sides
        self.schema: Schema = {
            **object_schema({"b64": B64_SCHEMA}),
            "description": "NPY of ([channels,] depth, height, width), or NIfTI-1, in base64",
        }

    def take(self, body: Any) -> Taken:
        """Return `pixel_values`, and where the volume lies in it. Raises RequestError (400, 413, 415)."""
        most = self._limits.numbers
        data = bytes_of(body, "volume", max(self._limits.image_bytes, most * 8 + 4096), "volume")
        image = _npy_volume(data, most) if data.startswith(b"\x93NUMPY") else _nifti_volume(data, most)
        if image.shape[0] != self._sides[0]:
            found, wanted = f"{image.shape[0]} channels", f"{self._sides[0]}, as the model has"
            raise RequestError("'volume' has another number of channels", field="volume", found=found, wanted=wanted)
        batch, placed = self._road.placed({"image": image}, "volume")
        return Taken(batch, {"placed": placed})

    def example(self) -> Any:
        """Return a volume of the model's own size, brighter along its last axis."""
        return {"b64": npy_b64(_shades(self._sides))}

    def probes(self) -> Sequence[Any]:
        """Return volumes of two sizes."""
        return [self.example(), {"b64": npy_b64(_shades((self._sides[0], *(side + 3 for side in self._sides[1:]))))}]


def npy_b64(values: np.ndarray[Any, Any]) -> str:
    """Return an array as an NPY file in base64."""
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    return base64.b64encode(out.getvalue()).decode("ascii")


def _shades(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.broadcast_to(np.linspace(0, 1, shape[-1], dtype=np.float32), shape))


def _npy_volume(data: bytes, most: int) -> Tensor:
    """Return uint8 or float32 (channels, depth, height, width), judged by the header before it is read."""
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, column_first, dtype = read_header(file)
    except (ValueError, OSError, SyntaxError, RecursionError, MemoryError) as error:
        raise RequestError(
            "'volume' has a damaged NPY header", field="volume", wanted="what numpy.save writes"
        ) from error
    if dtype.hasobject or dtype.kind not in "uif" or len(shape) not in (3, 4) or 0 in shape:
        found, wanted = f"{dtype} of shape {shape}"[:200], "numbers, ([channels,] depth, height, width)"
        raise RequestError("'volume' is no volume", field="volume", found=found, wanted=wanted)
    count, body = math.prod(shape), data[file.tell() :]
    if count > most:
        found, wanted = f"{count} numbers by its header", f"at most {most}"
        raise RequestError("'volume' is too large", field="volume", status=TOO_LARGE, found=found, wanted=wanted)
    if len(body) != count * dtype.itemsize:
        found, wanted = f"{len(body)} bytes of numbers", f"{count * dtype.itemsize}, by its header"
        raise RequestError("'volume' is cut short or too long", field="volume", found=found, wanted=wanted)
    values = np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if column_first else "C")
    kept = np.array(values if dtype == np.uint8 else values.astype(np.float32), order="C")
    if kept.dtype == np.float32 and not np.isfinite(kept).all():
        raise RequestError("'volume' holds NaN or infinity", field="volume", wanted="finite numbers")
    return torch.from_numpy(kept if kept.ndim == 4 else kept[None])


def _nifti_volume(data: bytes, most: int) -> Tensor:
    """Return a NIfTI volume; the reader believes no header."""
    if not data.startswith(b"\x1f\x8b") and data[:4] not in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        found = f"bytes that begin with {data[:8].hex()}"
        raise RequestError(
            "'volume' is of no kind that is read", field="volume", status=WRONG_KIND, found=found, wanted="NPY, NIfTI-1"
        )
    with tempfile.NamedTemporaryFile(suffix=".nii") as file:
        file.write(data)
        file.flush()
        try:
            return read_nifti(file.name, max_bytes=most * _BYTES).image
        except DataError as error:
            large = "larger than allowed" in error.problem
            problem = "'volume' is too large" if large else "'volume' is no sound NIfTI-1 file"
            raise RequestError(problem, field="volume", status=TOO_LARGE if large else 400) from error
