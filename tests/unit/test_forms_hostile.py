"""What a client may send instead of an instance: each gets its typed error, with the field, before it is read."""

from __future__ import annotations

import base64
import gzip
import io
import math
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.audio.wav import make_wav_header
from deepseek.data.image.normalize import Normalize
from deepseek.data.image.resize import Resize
from deepseek.data.table_columns import TableColumns
from deepseek.errors import RequestError
from deepseek.serve.forms import Form, FormLimits, form_of
from tests.toy_forms import MODELS, TOKENIZE, b64, bundle, file_bytes, picture

LIMITS = FormLimits(
    image_pixels=10_000, image_bytes=50_000, audio_seconds=2.0, audio_bytes=200_000, text_characters=200, numbers=100
)
COLUMNS = TableColumns(
    numeric=("amount", "hour"),
    categorical=("country",),
    ignore=("label",),
    means=(1.0, 2.0),
    stds=(1.0, 0.5),
    categories=(("ch", "de"),),
    one_hot=True,
)
SPEECH = [{"name": "LogMel", "n_mels": 16}, {"name": "Cepstra", "type": "log_mel"}]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Form, torch.nn.Module]]]:
    """One form of each kind of instance, with its model."""
    folder = tmp_path_factory.mktemp("bundles")
    kinds: dict[str, tuple[dict[str, Any], str, list[Any] | None]] = {
        "image": (MODELS["resnet"], "image_classification", [Resize(size=32), Normalize()]),
        "text": (MODELS["bert"], "classification", [TOKENIZE]),
        "hidden": (MODELS["bert_mlm"], "masked_lm", [TOKENIZE]),
        "row": ({**MODELS["mlp"], "input_shape": [5]}, "classification", [COLUMNS]),
        "tensors": (MODELS["gpt"], "language_modeling", None),
        "features": (MODELS["mlp"], "regression", None),
        "audio": (MODELS["conformer"], "speech_recognition", SPEECH),
        "volume": (MODELS["unet3d"], "segmentation", [Resize(size=8)]),
        "atoms": (MODELS["schnet"], "energies_forces", None),
        "label": (MODELS["dit"], "diffusion", None),
        "texts": (MODELS["clip"], "contrastive", [TOKENIZE, Resize(size=16), Normalize()]),
    }
    made = {name: bundle(folder / name, *values) for name, values in kinds.items()}
    yield {name: (form_of(one, LIMITS), one.model) for name, one in made.items()}


def refusal(forms: dict[str, tuple[Form, torch.nn.Module]], kind: str, instance: Any) -> RequestError:
    form, model = forms[kind]
    with pytest.raises(RequestError) as failed:
        form.run(model, instance)
    if not form.needs_model:
        with pytest.raises(RequestError) as again:
            form.to_inputs(instance)
        assert (again.value.status, again.value.field) == (failed.value.status, failed.value.field)
    assert "/" not in str(failed.value.found or "").replace("0-9 + /", "") or "tmp" not in str(failed.value)
    return failed.value


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


PNG = file_bytes(picture(20, 30))

IMAGES: list[tuple[Any, int, str]] = [
    (png_claiming(50_000, 50_000), 413, "image"),
    (png_claiming(101, 100), 413, "image"),
    (png_claiming(2**31 - 1, 2**31 - 1), 413, "image"),
    (png_claiming(90, 90), 400, "image"),  # a claim within bounds, and no pixels behind it
    (PNG[:-30], 400, "image"),
    (PNG[:20], 400, "image"),
    (b"GIF89a", 400, "image"),
    (b"\xff\xd8\xff\xe0" + b"\0" * 50, 400, "image"),
    (b"II*\0" + b"\0" * 100, 415, "image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image"),
    (b"RIFF\0\0\0\0WAVE", 415, "image"),
    (b"", 400, "image"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 60_000, 413, "image"),
    ({"b64": "A" * 100_000}, 413, "b64"),
    ({"b64": "not base64!"}, 400, "b64"),
    ({"b64": "AAA"}, 400, "b64"),
    ({"b64": "AAAA\n"}, 400, "b64"),
    ({"b64": "AA==AA=="}, 400, "b64"),
    ({"b64": "\ud800"}, 400, "b64"),
    ({"b64": "data:image/png;base64," + base64.b64encode(PNG).decode()}, 400, "b64"),
    ({"b64": ""}, 400, "b64"),
    ({"b64": 5}, 400, "b64"),
    ({"b64": base64.b64encode(PNG).decode(), "url": "http://169.254.169.254"}, 400, "url"),
    ({"url": "file:///etc/passwd"}, 400, "url"),
    ({}, 400, "image"),
    ([], 400, "image"),
    ("a", 400, "image"),
    (None, 400, "image"),
    ({**b64(PNG), "top_k": 0}, 400, "top_k"),
    ({**b64(PNG), "top_k": True}, 400, "top_k"),
    ({**b64(PNG), "top_k": 10**400}, 400, "top_k"),
]


@pytest.mark.parametrize("case", range(len(IMAGES)))
def test_images(forms: dict[str, Any], case: int) -> None:
    instance, status, field = IMAGES[case]
    error = refusal(forms, "image", instance)
    assert (error.status, error.field) == (status, field)


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_a_bomb_costs_nothing(forms: dict[str, Any], kind: str) -> None:
    """A picture of 11 GB by its header, and 40 MB in as many KB of gzip."""
    packed = gzip.compress(b"\x5c\x01\0\0" + bytes(40 << 20), 9)
    data = png_claiming(60_000, 60_000) if kind == "image" else packed
    assert refusal(forms, kind, data).status == (413 if kind == "image" else 400)
    tracemalloc.start()
    refusal(forms, kind, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_only_the_first_frame_of_an_animation_counts(forms: dict[str, Any]) -> None:
    from PIL import Image

    form, model = forms["image"]
    frames = [Image.fromarray(picture(20, 30, seed)) for seed in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    alone = io.BytesIO()
    frames[0].save(alone, "GIF")
    assert form.run(model, out.getvalue()) == form.run(model, alone.getvalue())


def wav(frames: int, rate: int = 8000, channels: int = 1, body: bytes | None = None) -> bytes:
    data = make_wav_header(rate, channels, frames, "pcm16")
    return data + (bytes(2 * channels * frames) if body is None else body)


def float_wav(value: float, frames: int = 8000) -> bytes:
    return make_wav_header(8000, 1, frames, "float32") + np.full(frames, value, "<f4").tobytes()


SOUNDS: list[tuple[Any, int, str]] = [
    (wav(8000 * 3), 413, "audio"),
    (wav(8000, body=b"\0" * 100), 400, "audio"),
    (wav(2**30, body=b"\0" * 100), 400, "audio"),
    (wav(150_000), 413, "audio"),
    (wav(0), 400, "audio"),
    (wav(5), 400, "audio"),
    (wav(200), 400, "audio"),
    (wav(8000)[:20], 400, "audio"),
    (float_wav(math.nan), 400, "audio"),
    (float_wav(math.inf), 400, "audio"),
    (b"fLaC" + b"\0" * 100, 400, "audio"),
    (b"OggS" + b"\xff" * 100, 400, "audio"),
    (b"ID3\x04" + b"\0" * 100, 415, "audio"),
    (PNG, 415, "audio"),
    (b"", 400, "audio"),
    ({"b64": "AA=A"}, 400, "b64"),
    ({"audio": {"b64": "A" * 400_000}}, 413, "b64"),
    ("text", 400, "audio"),
]


@pytest.mark.parametrize("case", range(len(SOUNDS)))
def test_sounds(forms: dict[str, Any], case: int) -> None:
    instance, status, field = SOUNDS[case]
    error = refusal(forms, "audio", instance)
    assert (error.status, error.field) == (status, field), str(error)


def test_silence_packed_to_nothing_is_judged_by_its_length(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, np.zeros(8000 * 60, np.float32), 8000, format="FLAC")
    made = bundle(tmp_path / "b", MODELS["conformer"], "speech_recognition", SPEECH)
    form = form_of(made, FormLimits(audio_seconds=59.0))
    with pytest.raises(RequestError) as failed:
        form.run(made.model, out.getvalue())
    assert failed.value.status == 413 and len(out.getvalue()) < 20_000


deep: Any = 1.0
for _ in range(5_000):
    deep = [deep]

TEXTS: list[tuple[str, Any, int, str]] = [
    ("text", "", 400, "text"),
    ("text", "a" * 201, 413, "text"),
    ("text", "a\ud800b", 400, "text"),
    ("text", 5, 400, "text"),
    ("text", None, 400, "text"),
    ("text", ["a"], 400, "text"),
    ("text", {"txt": "a"}, 400, "txt"),
    ("text", {"text": "a", "topk": 3}, 400, "topk"),
    ("text", {"top_k": 3}, 400, "text"),
    ("text", deep, 400, "text"),
    ("text", {"text": "a", "top_k": deep}, 400, "top_k"),
    ("text", {"text": "a", "\ud800": 1}, 400, "\\ud800"),
    ("hidden", "nothing is hidden", 400, "text"),
    ("hidden", "[MASK] " * 25, 400, "text"),
    ("hidden", {"text": "[MASK]", "top_k": "5"}, 400, "top_k"),
]


@pytest.mark.parametrize("case", range(len(TEXTS)))
def test_texts(forms: dict[str, Any], case: int) -> None:
    kind, instance, status, field = TEXTS[case]
    error = refusal(forms, kind, instance)
    assert (error.status, error.field) == (status, field)


ROW = {"amount": 1.0, "hour": 3, "country": "ch"}
ROWS: list[tuple[Any, str, str]] = [
    ({**ROW, "amuont": 2}, "row.amuont", "amount"),
    ({"amuont": 1.0, "hour": 3, "country": "ch"}, "row.amuont", "amount"),
    ({"amount": 1.0, "country": "ch"}, "row.hour", "hour"),
    ({**ROW, "amount": "1.0"}, "row.amount", "a number"),
    ({**ROW, "amount": True}, "row.amount", "a number"),
    ({**ROW, "amount": math.nan}, "row.amount", "finite"),
    ({**ROW, "amount": 10**400}, "row.amount", "finite"),
    ({**ROW, "country": None}, "row.country", "category"),
    ({**ROW, "country": ["ch"]}, "row.country", "category"),
    ({**ROW, "country": True}, "row.country", "category"),
    ({**ROW, "country": 10**5000}, "row.country", "digits"),
    ({**ROW, "country": "\ud800"}, "row.country", "surrogate"),
    ({**ROW, "country": "c" * 201}, "row.country", "200"),
    ({}, "row.amount", "amount"),
    ([1.0, 3, "ch"], "row", "column"),
    ("row", "row", "column"),
    (None, "row", "column"),
    ({"row": ROW, "top_k": -1}, "top_k", "1 to"),
    ({"row": ROW, "topk": 1}, "topk", "top_k"),
]


@pytest.mark.parametrize("case", range(len(ROWS)))
def test_rows(forms: dict[str, Any], case: int) -> None:
    instance, field, said = ROWS[case]
    error = refusal(forms, "row", instance)
    assert error.field == field and error.status in (400, 413)
    assert said in str(error)


def test_columns_that_are_not_read_may_be_sent(forms: dict[str, Any]) -> None:
    form, model = forms["row"]
    assert form.run(model, {**ROW, "label": {"any": "thing"}}) == form.run(model, ROW)
    assert form.run(model, {**ROW, "country": "never seen"})["classes"]


TENSORS: list[tuple[str, Any, int, str]] = [
    ("tensors", {"input_ids": []}, 400, "input_ids"),
    ("tensors", {"input_ids": [[1]]}, 400, "input_ids"),
    ("tensors", {"input_ids": 5}, 400, "input_ids"),
    ("tensors", {"input_ids": [1, 50]}, 400, "input_ids"),
    ("tensors", {"input_ids": [-1]}, 400, "input_ids"),
    ("tensors", {"input_ids": [1.5]}, 400, "input_ids"),
    ("tensors", {"input_ids": [True]}, 400, "input_ids"),
    ("tensors", {"input_ids": ["1"]}, 400, "input_ids"),
    ("tensors", {"input_ids": [2**63]}, 400, "input_ids"),
    ("tensors", {"input_ids": [1] * 101}, 413, "input_ids"),
    ("tensors", {"input": [1]}, 400, "input"),
    ("tensors", {}, 400, "input_ids"),
    ("tensors", "text", 400, "tensors"),
    ("tensors", None, 400, "tensors"),
    ("features", {"features": [1, 2, [3], 4]}, 400, "features"),
    ("features", {"features": [1, 2, math.inf, 4]}, 400, "features"),
    ("features", {"features": [1, 2, None, 4]}, 400, "features"),
    ("features", {"features": deep}, 400, "features"),
]


@pytest.mark.parametrize("case", range(len(TENSORS)))
def test_tensors(forms: dict[str, Any], case: int) -> None:
    kind, instance, status, field = TENSORS[case]
    error = refusal(forms, kind, instance)
    assert (error.status, error.field) == (status, field)


def test_tensors_that_are_too_long_for_the_model(forms: dict[str, Any]) -> None:
    form, model = forms["tensors"]
    with pytest.raises(RequestError) as failed:
        form.run(model, {"input_ids": [1] * 40})
    assert failed.value.status == 400


def npy(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def npy_claiming(shape: str, kind: str = "<f4") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (64 - (len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head


def test_an_option_may_be_as_wrong_as_an_instance(forms: dict[str, Any]) -> None:
    for wish in (deep, "png", None, {"a": deep}):
        assert refusal(forms, "volume", {**b64(npy(np.zeros((4, 4, 4), np.float32))), "mask": wish}).field == "mask"


VOLUMES: list[tuple[Any, int]] = [
    (npy(np.array([[{"a": 1}]], dtype=object)), 400),
    (npy(np.zeros((4, 4), np.float32)), 400),
    (npy(np.zeros((0, 4, 4), np.float32)), 400),
    (npy(np.zeros((2, 3, 3, 3), np.float32)), 400),
    (npy(np.zeros((3, 3, 3), np.complex64)), 400),
    (npy(np.full((3, 3, 3), np.nan, np.float32)), 400),
    (npy(np.zeros((5, 5, 5), np.float32)), 413),
    (npy(np.zeros((4, 4, 4), np.float32))[:-4], 400),
    (npy(np.zeros((4, 4, 4), np.float32)) + b"\0", 400),
    (npy_claiming("(100000, 100000, 100000)"), 413),
    (npy_claiming("(-1, 2, 2)"), 400),
    (npy_claiming("__import__('os').system('true')"), 400),
    (b"\x93NUMPY\x01\0", 400),
    (b"\x93NUMPY\x09\0" + b"\0" * 50, 400),
    (PNG, 415),
    (b"\x1f\x8b" + b"\0" * 50, 400),
    (b"\x5c\x01\0\0" + b"\0" * 400, 400),
]


@pytest.mark.parametrize("case", range(len(VOLUMES)))
def test_volumes(forms: dict[str, Any], case: int) -> None:
    instance, status = VOLUMES[case]
    error = refusal(forms, "volume", instance)
    assert (error.status, error.field) == (status, "volume")


HERE = [[0.0, 0.0, 0.0]]
OTHERS: list[tuple[str, Any, int, str]] = [
    ("atoms", {"numbers": [], "positions": []}, 400, "numbers"),
    ("atoms", {"numbers": [21], "positions": HERE}, 400, "numbers"),
    ("atoms", {"numbers": [0], "positions": HERE}, 400, "numbers"),
    ("atoms", {"numbers": [1], "positions": [[0.0, 0.0]]}, 400, "positions"),
    ("atoms", {"numbers": [1, 1], "positions": HERE}, 400, "positions"),
    ("atoms", {"numbers": [1], "positions": [[0.0, 0.0, math.nan]]}, 400, "positions"),
    ("atoms", {"numbers": [1]}, 400, "positions"),
    ("atoms", {"numbers": [1] * 1001, "positions": HERE * 1001}, 413, "numbers"),
    ("atoms", {"numbers": [1], "positions": HERE, "cell": [[0.0] * 3] * 3}, 400, "atoms"),
    ("atoms", {"numbers": [1], "positions": HERE, "box": 1}, 400, "box"),
    ("atoms", [1], 400, "atoms"),
    ("label", {"label": "beee"}, 400, "label"),
    ("label", {"label": 3}, 400, "label"),
    ("label", {}, 400, "label"),
    ("label", {"label": 0, "seed": 2**80}, 400, "seed"),
    ("label", {"label": 0, "seed": -1}, 400, "seed"),
    ("label", {"label": 0, "steps": 1}, 400, "steps"),
    ("texts", {}, 400, "texts"),
    ("texts", {"texts": "a"}, 400, "texts"),
    ("texts", {"texts": []}, 400, "texts"),
    ("texts", {"texts": ["a"] * 65}, 413, "texts"),
    ("texts", {"texts": ["a", ""]}, 400, "text"),
    ("texts", {"images": [b64(PNG), {"b64": "!"}]}, 400, "b64"),
    ("texts", {"sounds": ["a"]}, 400, "sounds"),
]


@pytest.mark.parametrize("case", range(len(OTHERS)))
def test_others(forms: dict[str, Any], case: int) -> None:
    kind, instance, status, field = OTHERS[case]
    error = refusal(forms, kind, instance)
    assert (error.status, error.field) == (status, field)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = (
    "b64",
    "text",
    "row",
    "tensors",
    "top_k",
    "image",
    "features",
    "numbers",
    "positions",
    "label",
    "texts",
    "audio",
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(MODELS)), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_anything_gives_an_answer_or_a_typed_error(forms: dict[str, Any], _: str, instance: Any) -> None:
    for form, model in forms.values():
        try:
            form.run(model, instance)
        except RequestError as error:
            assert error.status in (400, 413, 415)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(PNG) - 1), st.integers(0, 255), st.integers(0, len(PNG)))
def test_damaged_pictures(forms: dict[str, Any], place: int, value: int, end: int) -> None:
    form, model = forms["image"]
    data = (PNG[:place] + bytes([value]) + PNG[place + 1 :])[: end or None]
    try:
        form.run(model, data)
    except RequestError as error:
        assert error.status in (400, 413, 415)
