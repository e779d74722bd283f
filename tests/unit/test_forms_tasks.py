"""Every task in its natural form: the answer is what the task predicts for the reader's sample through the pipeline."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor

import deepseek as ds
from deepseek.bundle import Bundle
from deepseek.data.audio import write_audio
from deepseek.data.image.normalize import Normalize
from deepseek.data.image.resize import Letterbox, Resize
from deepseek.data.readers.opening import open_reader
from deepseek.data.spell_text import SpellText
from deepseek.data.table_columns import TableColumns
from deepseek.errors import ModelError, RequestError
from deepseek.export.signature import output_tensors, single_output_name
from deepseek.serve.forms import Form, form_of
from deepseek.tasks.build import build_task
from tests.toy_forms import LABELS, MODELS, TOKENIZE, b64, bundle, file_bytes, picture

COLUMNS = TableColumns(
    numeric=("size", "weight"),
    categorical=("colour",),
    ignore=("kind",),
    means=(1.0, 2.0),
    stds=(1.0, 0.5),
    categories=(("blue", "red"),),
    one_hot=True,
)
SPEECH = [
    SpellText(alphabet="abcdefgh"),
    {"name": "Resample", "target_sr": 8000},
    {"name": "LogMel", "n_mels": 16},
    {"name": "Cepstra", "type": "log_mel"},
]


def answered(form: Form, made: Bundle, instance: Any) -> dict[str, Any]:
    """Return the form's answer, by `run` and, where it has fixed calls, by the engine's way: both are the same."""
    answer = form.run(made.model, instance)
    jsonschema.validate(answer, form.answer_schema)
    if not isinstance(instance, bytes):
        jsonschema.validate(instance, form.request_schema)
    if not form.needs_model:
        inputs = form.to_inputs(instance)
        with torch.no_grad():
            output = made.model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        outputs = output_tensors(output, single_output_name(made.model))
        same(form.to_answer(inputs, {name: value.numpy() for name, value in outputs.items()}), answer)
    return answer


def same(one: Any, other: Any) -> None:
    """Compare two answers; numbers to float32's rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            same(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    else:
        assert one == other


def predicted(made: Bundle, sample: dict[str, Any], *names: str) -> Any:
    """Return what the task predicts for a reader's sample through the bundle's whole pipeline."""
    pipeline = made.pipeline()
    assert pipeline is not None
    batch = pipeline([sample])
    task = build_task({"name": made.config.task, **made.config.task_settings})
    inputs = batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}
    return task.predict(made.model, inputs)


def written(folder: Path, levels: Any, name: str = "one.png", kind: str = "PNG", **options: Any) -> bytes:
    data = file_bytes(levels, kind, **options)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / name).write_bytes(data)
    return data


def check_classes(answer: dict[str, Any], chances: Tensor) -> None:
    best = chances[0].argsort(descending=True).tolist()
    assert [one["index"] for one in answer["classes"]] == best[: len(answer["classes"])]
    assert answer["label"] == LABELS[best[0]]
    assert [one["score"] for one in answer["classes"]] == pytest.approx(chances[0][best].tolist(), rel=1e-5)


@pytest.mark.parametrize("size", [32, 40])
def test_an_image_is_classified(tmp_path: Path, size: int) -> None:
    made = bundle(tmp_path / "b", MODELS["resnet"], "image_classification", [Resize(size=size), Normalize()])
    data = written(tmp_path, picture(50, 70))
    form = form_of(made)
    assert (form.takes, form.gives) == ("image", "classes")
    assert form.needs_model == (size != 32)  # the model is served at the size of its example
    sample = open_reader(tmp_path / "data", kind="images").read(0)
    chances = predicted(made, sample, "pixel_values")
    check_classes(answered(form, made, b64(data)), chances)
    check_classes(answered(form, made, data), chances)
    wrapped = answered(form, made, {"image": b64(data), "top_k": 2})
    assert len(wrapped["classes"]) == 2
    assert answered(form, made, {**b64(data), "top_k": 2}) == wrapped


def test_an_image_is_turned_as_the_reader_turns_it(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(tmp_path, picture(40, 64), "one.jpg", "JPEG", exif=exif.tobytes())
    made = bundle(tmp_path / "b", MODELS["resnet"], "image_classification", [Resize(size=32), Normalize()])
    sample = open_reader(tmp_path / "data", kind="images").read(0)
    assert sample["image"].shape == (3, 64, 40)
    check_classes(answered(form_of(made), made, data), predicted(made, sample, "pixel_values"))


def test_a_text_is_classified(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["bert"], "classification", [TOKENIZE])
    (tmp_path / "t.csv").write_text("label,review\n0,the room was lovely\n1,the street was dirty and we had it\n")
    reader, form = open_reader(tmp_path / "t.csv", text="review"), form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("text", "classes", False)
    for row in range(2):
        sample = reader.read(row)
        chances = predicted(made, sample, "input_ids", "attention_mask")
        check_classes(answered(form, made, sample["text"]), chances)
    assert (
        answered(form, made, {"text": "the room", "top_k": 1})["classes"]
        == answered(form, made, "the room")["classes"][:1]
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_row_is_answered(tmp_path: Path, task: str) -> None:
    labels = 3 if task == "classification" else 1
    settings = {"shift": 10.0, "scale": 5.0} if task == "regression" else {}
    model = {**MODELS["mlp"], "input_shape": [5], "num_labels": labels}
    made = bundle(tmp_path / "b", model, task, [COLUMNS], **settings)
    (tmp_path / "t.csv").write_text("size,weight,colour,kind\n1.5,2,red,a\n-3,0.25,green,b\n")
    reader, form = open_reader(tmp_path / "t.csv"), form_of(made)
    assert (form.takes, form.needs_model) == ("row", False)
    for row in range(2):
        cells = {key: value for key, value in reader.read(row).items() if key != "path"}
        found = predicted(made, {"row": cells}, "features", "index")
        answer = answered(form, made, cells)
        if task == "regression":
            assert answer["values"] == pytest.approx(found.flatten().tolist(), rel=1e-5)
        else:
            check_classes(answer, found)
    missing = answered(form, made, {"size": None, "weight": 2.0, "colour": "red"})
    same(missing, answered(form, made, {"size": 1.0, "weight": 2.0, "colour": "red"}))  # the mean of the training rows


def test_only_categories_reach_the_right_input(tmp_path: Path) -> None:
    model = {"name": "FTTransformer", "num_numeric": 0, "cardinalities": [3], "num_layers": 1, "d_model": 16}
    columns = TableColumns(numeric=(), categorical=("colour",), means=(), stds=(), categories=(("blue", "red"),))
    made = bundle(tmp_path / "b", {**model, "num_heads": 2, "num_labels": 3}, "classification", [columns])
    found = predicted(made, {"row": {"colour": "red"}}, "categorical", "index")
    check_classes(answered(form_of(made), made, {"colour": "red"}), found)


def test_boxes_come_back_to_the_picture(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["yolo"], "detection", [Letterbox(size=64)], min_score=0.001, max_detections=40)
    data = written(tmp_path, picture(90, 160))
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("image", "boxes", False)
    found = predicted(made, open_reader(tmp_path / "data", kind="images").read(0), "pixel_values")[0]
    answer = answered(form, made, data)
    assert (answer["width"], answer["height"]) == (160, 90)
    boxes = (found.boxes - torch.tensor([0, 14, 0, 14])) / 0.4  # 160 x 90 lies in 64 x 36, 14 rows from the top
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, 90)
    kept = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    assert len(answer["objects"]) == int(kept.sum()) > 0
    np.testing.assert_allclose([one["box"] for one in answer["objects"]], boxes[kept].numpy(), atol=1e-3)
    assert [one["index"] for one in answer["objects"]] == found.labels[kept].tolist()
    assert [one["score"] for one in answer["objects"]] == pytest.approx(found.scores[kept].tolist(), rel=1e-4)


def test_a_mask_has_the_pictures_size(tmp_path: Path) -> None:
    from PIL import Image

    made = bundle(tmp_path / "b", MODELS["unet"], "segmentation", [Resize(size=32), Normalize()])
    data = written(tmp_path, picture(64, 96))
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("image", "mask", False)
    found = predicted(made, open_reader(tmp_path / "data", kind="images").read(0), "pixel_values").argmax(1)[0]
    wanted = found.repeat_interleave(2, 0).repeat_interleave(3, 1).numpy()
    answer = answered(form, made, b64(data))
    mask = np.array(Image.open(io.BytesIO(base64.b64decode(answer["mask"]["b64"]))))
    np.testing.assert_array_equal(mask, wanted)
    assert answer["size"] == [64, 96] and sum(one["pixels"] for one in answer["classes"]) == 64 * 96
    assert [one["share"] for one in answer["classes"]] == [float((wanted == label).mean()) for label in range(3)]
    runs = answered(form, made, {**b64(data), "mask": "runs"})
    again = np.concatenate([np.full(length, label) for label, length in runs["runs"]]).reshape(64, 96)
    np.testing.assert_array_equal(again, wanted)
    assert set(answered(form, made, {"image": b64(data), "mask": "none"})) == {"size", "classes"}


def test_a_volumes_mask_is_a_volume(tmp_path: Path) -> None:
    stages = [Resize(size=8), Normalize(mean=(0.3,), std=(0.3,))]
    made = bundle(tmp_path / "b", MODELS["unet3d"], "segmentation", stages)
    volume = np.random.default_rng(0).random((16, 8, 24), dtype=np.float32)
    out = io.BytesIO()
    np.save(out, volume)
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("volume", "mask", False)
    found = predicted(made, {"image": torch.from_numpy(volume)[None]}, "pixel_values").argmax(1)[0]
    wanted = found.repeat_interleave(2, 0).repeat_interleave(3, 2).numpy()
    for instance in (out.getvalue(), b64(out.getvalue())):
        answer = answered(form, made, instance)
        assert answer["mask"]["format"] == "npy"
        np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(answer["mask"]["b64"]))), wanted)


@pytest.mark.parametrize("decoding", ["greedy", "rescore"])
@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_recording_is_written_down(tmp_path: Path, ending: str, decoding: str) -> None:
    pytest.importorskip("soundfile")
    model = dict(MODELS["conformer"])
    if decoding == "rescore":
        model["decoder"] = {"vocab_size": 10, "embedding_dim": 16, "num_layers": 1, "attention_heads": 2}
    made = bundle(tmp_path / "b", model, "speech_recognition", SPEECH, decoding=decoding)
    (tmp_path / "data").mkdir()
    wave = 0.3 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    write_audio(tmp_path / "data" / f"one.{ending}", wave.clamp(-1, 1), 16000)
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("audio", "text", decoding == "rescore")
    sample = open_reader(tmp_path / "data", kind="audio").read(0)
    (tokens,) = predicted(made, {**sample, "text": "abc"}, "input_features", "lengths")
    answer = answered(form, made, (tmp_path / "data" / f"one.{ending}").read_bytes())
    assert answer == {"text": "".join("abcdefgh"[one - 1] for one in tokens if one <= 8), "tokens": tokens}


def test_hidden_tokens_are_told(tmp_path: Path) -> None:
    stages = [TOKENIZE, {"name": "MaskTokens", "tokenizer": "-"}]
    made = bundle(tmp_path / "b", MODELS["bert_mlm"], "masked_lm", stages)
    form, words = form_of(made), made.tokenizer
    assert (form.takes, form.gives, form.needs_model) == ("text", "tokens", False) and words is not None
    answer = answered(form, made, {"text": "the [MASK] was[MASK] we", "top_k": 3})
    ids = [*words.encode("the "), words.special_tokens["[MASK]"], *words.encode(" was")]
    ids += [words.special_tokens["[MASK]"], *words.encode(" we")]
    task = build_task("masked_lm")
    chances = task.predict(made.model, torch.tensor([ids]))[0]
    places = [place for place, one in enumerate(ids) if one == words.special_tokens["[MASK]"]]
    assert [one["position"] for one in answer["hidden"]] == places
    for one in answer["hidden"]:
        best = chances[one["position"]].topk(3)
        assert [token["id"] for token in one["tokens"]] == best.indices.tolist()
        assert [token["score"] for token in one["tokens"]] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_texts_and_images_are_compared(tmp_path: Path) -> None:
    stages = [TOKENIZE, Resize(size=16), Normalize()]
    made = bundle(tmp_path / "b", MODELS["clip"], "contrastive", stages)
    texts, pictures = ["the room", "a street and we had our"], [picture(20, 30, seed) for seed in range(3)]
    form, pipeline = form_of(made), made.pipeline()
    assert (form.takes, form.gives, form.needs_model) == ("texts", "vectors", False) and pipeline is not None
    answer = answered(form, made, {"texts": texts, "images": [b64(file_bytes(one)) for one in pictures]})
    batch = pipeline(
        [
            {"text": text, "image": torch.from_numpy(one).permute(2, 0, 1)}
            for text, one in zip([*texts, texts[-1]], pictures, strict=True)
        ]
    )
    found = build_task("contrastive").predict(made.model, {k: v for k, v in batch.items() if k != "index"})
    np.testing.assert_allclose(answer["vectors"]["text"], found["text"][:2], atol=1e-5)
    np.testing.assert_allclose(answer["vectors"]["image"], found["image"], atol=1e-5)
    np.testing.assert_allclose(answer["similarity"]["text_to_image"], found["text"][:2] @ found["image"].T, atol=1e-5)
    alone = answered(form, made, {"texts": texts[:1]})
    assert set(alone["vectors"]) == {"text"} and alone["similarity"] == {}
    np.testing.assert_allclose(alone["vectors"]["text"], found["text"][:1], atol=1e-5)


def test_a_text_is_written(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["t5"], "seq2seq", [TOKENIZE], max_new_tokens=6)
    form, words = form_of(made), made.tokenizer
    assert (form.takes, form.gives, form.needs_model) == ("text", "text", True) and words is not None
    found = predicted(made, {"text": "the room"}, "input_ids", "attention_mask")[0]
    answer = answered(form, made, "the room")
    assert answer == {"text": words.decode(found), "tokens": found}
    assert answered(form, made, {"text": "the room", "max_new_tokens": 2})["tokens"] == found[:2]
    with pytest.raises(RequestError) as failed:
        form.to_inputs("the room")
    assert failed.value.status == 501


def test_a_picture_is_made(tmp_path: Path) -> None:
    from PIL import Image

    stages = [Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))]
    model = {**MODELS["dit"], "learn_sigma": False}
    made = bundle(tmp_path / "b", model, "diffusion", stages, sample_steps=2, objective="velocity")
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("label", "image", True)
    noise = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(7))
    task = build_task({"name": "diffusion", **made.config.task_settings})
    found = task.predict(made.model, {"labels": torch.tensor([1]), "noise": noise})[0]
    levels = found * torch.tensor([0.2, 0.3, 0.4])[:, None, None] + torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    wanted = (levels * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    answer = answered(form, made, {"label": "bee", "seed": 7})
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(answer["image"]["b64"]))))
    np.testing.assert_array_equal(shown, wanted)
    assert answered(form, made, {"label": 1, "seed": 7}) == answer != answered(form, made, {"label": 1, "seed": 8})


def test_atoms_have_energy_and_forces(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["schnet"], "energies_forces")
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("atoms", "energies", True)
    places = [[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.1, 0.2]]
    batch = {"atomic_numbers": torch.tensor([[8, 1, 1]]), "positions": torch.tensor([places])}
    energies, forces = build_task("energies_forces").predict(made.model, batch)
    answer = answered(form, made, {"numbers": [8, 1, 1], "positions": places})
    assert answer["energy"] == pytest.approx(float(energies[0]), rel=1e-5)
    np.testing.assert_allclose(answer["forces"], forces[0], atol=1e-5)


def test_a_bundle_without_pipeline_takes_tensors(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["mlp"], "classification")
    form = form_of(made)
    assert (form.takes, form.gives, form.needs_model) == ("tensors", "classes", False)
    row = [0.5, -1.0, 2.0, 0.25]
    chances = build_task("classification").predict(made.model, torch.tensor([row]))
    for instance in ({"features": row}, row, {"tensors": {"features": row}, "top_k": 3}):
        check_classes(form.run(made.model, instance), chances)
    check_classes(answered(form, made, {"features": row}), chances)


def test_a_language_model_gives_its_outputs(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["gpt"], "language_modeling")
    form = form_of(made)
    answer = answered(form, made, {"input_ids": [1, 2, 3]})
    with torch.no_grad():
        logits = made.model(torch.tensor([[1, 2, 3]]))[0]
    np.testing.assert_allclose(answer["tensors"]["logits"], logits, atol=1e-5)


def test_one_file_with_a_tokenizer_inside_takes_tensors(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", MODELS["bert"], "classification", [TOKENIZE])
    ds.save(
        made.model,
        tmp_path / "b.pt",
        tokenizer=made.tokenizer,
        task="classification",
        labels=LABELS,
        pipeline=made.config.pipeline,
    )
    one = ds.load(tmp_path / "b.pt", device="cpu")
    form, words = form_of(one), made.tokenizer
    assert form.takes == "tensors" and words is not None
    answer = answered(form, one, {"input_ids": words.encode("the room")})
    same(answer, answered(form_of(made), made, "the room"))


def test_answers_need_the_inputs_of_the_form(tmp_path: Path) -> None:
    form = form_of(bundle(tmp_path / "b", MODELS["mlp"], "classification"))
    inputs = form.to_inputs([0.0, 0.0, 0.0, 0.0])
    with pytest.raises(ModelError, match="to_inputs"):
        form.to_answer(dict(inputs), {"logits": np.zeros((1, 3), np.float32)})


HEARD = [{"name": "Resample", "target_sr": 16000}, {"name": "WhisperFeatures", "n_mels": 16, "max_frames": 100}]

STAGES: dict[str, tuple[str, list[Any] | None]] = {
    "bert": ("classification", [TOKENIZE]),
    "bert_mlm": ("masked_lm", [TOKENIZE]),
    "clip": ("contrastive", [TOKENIZE, Resize(size=16), Normalize()]),
    "clip_sound": ("contrastive", [TOKENIZE, Resize(size=16), Normalize(), *HEARD]),
    "conformer": ("speech_recognition", SPEECH),
    "dit": ("diffusion", None),
    "gpt": ("language_modeling", None),
    "mlp": ("regression", None),
    "resnet": ("image_classification", [Resize(size=32), Normalize()]),
    "schnet": ("energies_forces", None),
    "t5": ("seq2seq", [TOKENIZE]),
    "unet": ("segmentation", [Resize(size=32), Normalize()]),
    "unet3d": ("segmentation", [Resize(size=8)]),
    "whisper": ("seq2seq", [TOKENIZE, *HEARD]),
    "xl": ("segment_language_modeling", None),
    "yolo": ("detection", [Letterbox(size=64)]),
}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_the_example_can_be_sent(tmp_path: Path, name: str) -> None:
    task, stages = STAGES[name]
    settings: dict[str, Any] = {"diffusion": {"sample_steps": 2}, "seq2seq": {"max_new_tokens": 3}}.get(task, {})
    made = bundle(tmp_path / "b", MODELS[name], task, stages, **settings)
    form = form_of(made)
    jsonschema.Draft202012Validator.check_schema(form.request_schema)
    jsonschema.Draft202012Validator.check_schema(form.answer_schema)
    answered(form, made, form.example())
