"""Folders of images, masks, recordings, volumes and dialogues; and which reader `open_reader` takes for what."""

from __future__ import annotations

import json
import os
import pickle
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data import read_documents
from deepseek.data.readers import (
    READERS,
    AudioFiles,
    AudioFolder,
    AudioText,
    ImageFiles,
    ImageFolder,
    JsonLines,
    KdConv,
    NiftiFolder,
    SegmentationFolder,
    TextLines,
    kdconv_chats,
    open_reader,
)
from deepseek.data.readers.content import kind_of
from deepseek.data.readers.pairs import pair_by_name
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import classes_of, list_tree, shown
from deepseek.errors import ConfigError, DataError
from deepseek.lazy import load

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def save_image(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, value, value) if mode == "RGB" else value).save(path)


def save_sound(path: Path, frames: int = 80, level: int = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.full(frames, level, dtype="<i2").tobytes())


def reads_of(reader: Any, key: str) -> list[Any]:
    again = pickle.loads(pickle.dumps(reader))
    return [again.read(row)[key] for row in range(len(again))]


def test_images_by_class(tmp_path: Path) -> None:
    for number, name in enumerate(["cat/b.png", "cat/a.jpg", "cat/deep/c.png", "10/x.png", "9/x.png"]):
        save_image(tmp_path / name, number)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    save_image(tmp_path / ".hidden" / "x.png")
    reader = open_reader(tmp_path)
    assert isinstance(reader, ImageFolder) and reader.class_names == ("10", "9", "cat")
    assert reads_of(reader, "label") == [0, 1, 2, 2, 2]
    names = [os.path.relpath(path, tmp_path) for path in reads_of(reader, "path")]
    assert names == ["10/x.png", "9/x.png", "cat/a.jpg", "cat/b.png", "cat/deep/c.png"]
    assert reader.read(3)["image"].shape == (3, 3, 4) and reader.read(3)["image"].dtype == torch.uint8
    assert ImageFolder(tmp_path, channels=1).read(0)["image"].shape == (1, 3, 4)
    assert reads_of(ImageFolder(tmp_path, class_names=["cat", "9", "10"]), "label") == [0, 0, 0, 1, 2]
    save_image(tmp_path / "stray.png")
    with pytest.raises(DataError, match="1 images outside") as caught:
        ImageFolder(tmp_path)
    assert "stray.png" in str(caught.value)
    assert isinstance(open_reader(tmp_path), ImageFiles)  # no classes: some lie in no folder
    assert len(open_reader(tmp_path)) == 6


def test_names_of_classes_that_are_numbers_count_by_value() -> None:
    assert classes_of(["10", "9", "9", "0"]) == ("0", "9", "10")
    assert classes_of(["10", "9", "x"]) == ("10", "9", "x")


def test_images_are_known_by_content(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.dat")
    (tmp_path / "b.png").write_bytes(b"no image at all\n")
    reader = open_reader(tmp_path)
    assert isinstance(reader, ImageFiles) and len(reader) == 1
    with pytest.raises(DataError, match=r"a\.dat"):
        (tmp_path / "a.dat").write_bytes(b"gone")
        reader.read(0)


@pytest.mark.parametrize(
    "names",
    [
        ("images/{}.png", "labels/{}.png"),
        ("train/Image/{}.png", "train/Mask/{}.png"),
        ("{}.png", "{}_mask.png"),
        ("imgs/{}.jpg", "gt/{}_gt.png"),
    ],
)
def test_masks_are_found_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    for number in range(3):
        save_image(tmp_path / names[0].format(number), number * 10)
        save_image(tmp_path / names[1].format(number), number, "L")
    reader = open_reader(tmp_path)
    assert isinstance(reader, SegmentationFolder) and len(reader) == 3
    for number, (image, mask) in enumerate(zip(reads_of(reader, "image"), reads_of(reader, "mask"), strict=True)):
        assert image.shape == (3, 3, 4) and abs(int(image[0, 0, 0]) - number * 10) < 3
        assert mask.dtype == torch.int64 and mask.shape == (3, 4) and (mask == number).all()


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "1.png")
    save_image(tmp_path / "labels" / "1.png", 255, "L")
    assert (SegmentationFolder(tmp_path, mask_values=(0, 255)).read(0)["mask"] == 1).all()
    assert (SegmentationFolder(tmp_path, mask_values=(255, 0)).read(0)["mask"] == 0).all()
    with pytest.raises(DataError, match="not in mask_values"):
        SegmentationFolder(tmp_path, mask_values=(0, 1)).read(0)
    with pytest.raises(ConfigError, match="distinct"):
        SegmentationFolder(tmp_path, mask_values=(1, 1))
    save_image(tmp_path / "labels" / "1.png", 1, "L", (5, 5))
    with pytest.raises(DataError, match="does not fit its image"):
        SegmentationFolder(tmp_path).read(0)
    save_image(tmp_path / "images" / "2.png")
    with pytest.raises(DataError, match=r"1 alone, such as images/2\.png"):
        SegmentationFolder(tmp_path)
    assert len(SegmentationFolder(tmp_path, partial=True)) == 1
    save_image(tmp_path / "labels" / "1.jpg", 1, "L")
    with pytest.raises(DataError, match="same name"):
        SegmentationFolder(tmp_path)


@given(st.sets(st.text("ab_", min_size=1, max_size=3), min_size=1, max_size=6))
def test_pairs_hold_every_file_once(stems: set[str]) -> None:
    names = [f"{folder}/{one}.png" for one in stems for folder in ("images", "masks")]
    pairs, alone = pair_by_name(names)
    assert sorted(name for pair in pairs for name in pair) == sorted(names) and not alone
    assert all(image[7:] == mask[6:] for image, mask in pairs)


def test_recordings_by_class(tmp_path: Path) -> None:
    for name in ("yes/1.wav", "no/1.wav", "no/2.wav"):
        save_sound(tmp_path / name, 80 if name[0] == "y" else 40)
    reader = open_reader(tmp_path)
    assert isinstance(reader, AudioFolder) and reader.class_names == ("no", "yes")
    assert reads_of(reader, "label") == [0, 0, 1]
    sample = reader.read(2)
    assert sample["waveform"].shape == (80,) and sample["sample_rate"] == 8000
    assert reader.sizes().tolist() == [124, 124, 204]
    save_sound(tmp_path / "stray.wav")
    with pytest.raises(DataError, match=r"stray\.wav"):
        AudioFolder(tmp_path)
    assert len(open_reader(tmp_path)) == 4


def test_fields_in_the_names_of_recordings(tmp_path: Path) -> None:
    for name in ("7_jack_0.wav", "10_ann_lee_1.wav", "7_ann_2.wav"):
        save_sound(tmp_path / name)
    plain = open_reader(tmp_path)
    assert isinstance(plain, AudioFiles) and sorted(plain.read(0)) == ["path", "sample_rate", "waveform"]
    reader = open_reader(tmp_path, pattern=r"(?P<digit>\d+)_(?P<speaker>.+)_(?P<index>\d+)\.wav")
    assert isinstance(reader, AudioFiles) and reader.class_names == ("7", "10")
    assert reads_of(reader, "label") == [1, 0, 0] and reads_of(reader, "speaker") == ["ann_lee", "ann", "jack"]
    assert "index" not in reader.read(0)
    spoken = AudioFiles(tmp_path, pattern="{digit}_{speaker}_{take}.wav", label="take")
    assert reads_of(spoken, "digit") == ["10", "7", "7"] and spoken.class_names == ("0", "2", "lee_1")
    with pytest.raises(DataError, match="does not match"):
        AudioFiles(tmp_path, pattern="{digit}_jack_{take}.wav")
    for wrong in ("(?P<x>", "no fields", "{label}.wav"):
        with pytest.raises(ConfigError, match="pattern"):
            AudioFiles(tmp_path, pattern=wrong)
    with pytest.raises(ConfigError, match="no field"):
        AudioFiles(tmp_path, pattern="{digit}_{rest}.wav", label="speaker")
    with pytest.raises(ConfigError, match="no effect"):
        AudioFiles(tmp_path, label="speaker")


def test_recordings_with_a_text(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        save_sound(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text(f"\ufeffsaid {name}\n", encoding="utf-8")
    reader = open_reader(tmp_path)
    assert isinstance(reader, AudioText) and reads_of(reader, "text") == ["said a", "said b/c"]
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.txt is not valid UTF-8"):
        reader.read(0)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.wav has no text"):
        AudioText(tmp_path)
    assert len(AudioText(tmp_path, partial=True)) == 1


def test_volumes_with_masks(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / folder / "case_1.nii.gz")
    reader = open_reader(tmp_path)
    assert isinstance(reader, NiftiFolder) and len(reader) == 1
    sample = pickle.loads(pickle.dumps(reader)).read(0)
    assert sample["image"].dtype == torch.float32 and np.array_equal(sample["image"][0].numpy(), values.T)
    assert sample["mask"].dtype == torch.int64 and np.array_equal(sample["mask"].numpy(), values.T)
    alone = open_reader(tmp_path / "imagesTr")
    assert isinstance(alone, NiftiFolder) and "mask" not in alone.read(0)
    nibabel.save(nibabel.Nifti1Image(values[:1], np.eye(4)), tmp_path / "labelsTr" / "case_1.nii.gz")
    with pytest.raises(DataError, match="does not fit its volume"):
        reader.read(0)


def test_annotations_in_json_lines(tmp_path: Path) -> None:
    save_image(tmp_path / "set" / "a.png")
    save_image(tmp_path / "set" / "m.png", 2, "L")
    save_sound(tmp_path / "set" / "s.wav")
    lines = tmp_path / "set" / "list.jsonl"
    lines.write_text('{"path": "a.png", "mask": "m.png", "boxes": [[0, 0, 2, 2]], "label": "x"}\n', encoding="utf-8")
    reader = open_reader(tmp_path / "set")  # the images that it names belong to it
    assert isinstance(reader, JsonLines)
    sample = reader.read(0)
    assert sample["image"].shape == (3, 3, 4) and (sample["mask"] == 2).all() and sample["label"] == 0
    assert sample["boxes"].tolist() == [[0, 0, 2, 2]] and sample["path"] == str(tmp_path / "set" / "a.png")
    lines.write_text('{"audio": "s.wav", "text": "hi"}\n{"text": "no file"}\n', encoding="utf-8")
    spoken = JsonLines(lines)
    assert spoken.read(0)["waveform"].shape == (80,) and spoken.read(0)["text"] == "hi"
    with pytest.raises(DataError, match=r"list\.jsonl:2: no path"):
        spoken.read(1)
    assert JsonLines(lines, media="none").read(0)["audio"] == "s.wav"
    lines.write_text('{"text": "about nothing here"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="more than one way") as caught:
        open_reader(tmp_path / "set")
    assert "kind='jsonl'" in str(caught.value) and "kind='audio'" in str(caught.value)
    assert isinstance(open_reader(tmp_path / "set", kind="jsonl"), JsonLines)


def dialogue(*turns: str) -> dict[str, Any]:
    fact = {"name": "Wall", "attrname": "length", "attrvalue": "21,196 km"}
    return {"name": "Wall", "messages": [{"message": turn, "attrs": [fact]} for turn in turns]}


def test_dialogues_become_chats(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([dialogue("长城?", "a wall", "how long?"), dialogue("x", "y")]), encoding="utf-8")
    (tmp_path / "kb.json").write_text('{"Wall": [["Wall", "length", "21,196 km"]]}', encoding="utf-8")
    chats = list(kdconv_chats(tmp_path))
    assert [turn["role"] for turn in chats[0]["messages"]] == ["user", "assistant", "user"]
    assert chats[0]["triples"] == [["Wall", "length", "21,196 km"]] and chats[0]["name"] == "Wall"
    lines = tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(chat) + "\n" for chat in kdconv_chats(path, knowledge=True)), encoding="utf-8")
    documents = list(read_documents(lines))
    assert documents[0].messages is not None and documents[0].messages[1].content == "长城?"
    assert documents[0].messages[0] == ("system", "Wall\tlength\t21,196 km")
    reader = open_reader(path)
    assert isinstance(reader, KdConv) and reads_of(reader, "messages") == [chat["messages"] for chat in chats]
    assert reader.sizes().tolist() == [18, 2]
    for wrong in (
        [dialogue("one")],
        [{"messages": [{"message": 5}, {"message": ""}]}],
        [3],
        {},
        [dialogue("\ud800", "a")],
    ):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(DataError, match=r"dev\.json"):
            list(kdconv_chats(path))


def test_splits_are_not_read_together_by_mistake(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        save_image(tmp_path / "images" / name)
    with pytest.raises(DataError, match="several splits") as caught:
        open_reader(tmp_path / "images")
    assert "kind=" in str(caught.value)
    assert len(open_reader(tmp_path / "images" / "train")) == 2
    assert len(open_reader(tmp_path / "images", kind="images")) == 3
    (tmp_path / "lines").mkdir()
    for name in ("train.jsonl", "dev.jsonl"):
        (tmp_path / "lines" / name).write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="several splits"):
        open_reader(tmp_path / "lines")
    assert len(open_reader(tmp_path / "lines", kind="jsonl")) == 2


def test_an_hdf5_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"], file["label"] = np.zeros((3, 1, 2, 2), dtype=np.uint8), np.arange(3)
    reader = open_reader(tmp_path / "a.h5")
    assert len(reader) == 3 and int(reader.read(2)["label"]) == 2
    with pytest.raises(DataError, match="no reader fits") as caught:
        open_reader(tmp_path)
    assert "H5Dataset" in str(caught.value)


def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder with no files"):
        open_reader(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        open_reader(tmp_path / "gone")
    with pytest.raises(DataError, match="can't read"):
        open_reader("a\0b")
    for number in range(20):
        save_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.xml").write_text("<svg/>", encoding="utf-8")
    found = Survey.of(tmp_path).summary()
    assert found == "a folder with 20 .png (image), 20 .xml (xml)"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(DataError, match="no reader fits") as caught:
        open_reader(tmp_path / "other")
    assert ".parquet" in str(caught.value) and "DataPipeline" in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'images'"):
        open_reader(tmp_path, kind="image")
    with pytest.raises(ConfigError, match="no option 'chanels'") as wrong:
        open_reader(tmp_path, kind="images", chanels=1)
    assert "channels" in str(wrong.value)
    for name in READERS:
        with pytest.raises(DataError):
            load(READERS[name])(tmp_path / "other")


@pytest.mark.skipif(os.name == "nt", reason="links and permissions are of another kind on Windows")
def test_strange_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("one\n", encoding="utf-8")
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    os.symlink(tmp_path / "self", tmp_path / "self")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.txt")
    os.mkfifo(tmp_path / "pipe")
    odd = os.fsencode(tmp_path) + b"/b\xff.txt"
    with open(odd, "wb") as file:
        file.write(b"two\n")
    assert list(list_tree(tmp_path)) == ["b\udcff.txt", "sub/a.txt"]
    reader = open_reader(tmp_path)
    assert isinstance(reader, TextLines) and reads_of(reader, "text") == ["two", "one"]
    os.unlink(odd)
    with pytest.raises(DataError) as caught:
        reader.read(0)
    assert "b\\xff.txt:1" in str(caught.value)
    str(caught.value).encode("utf-8")
    assert shown("ä") == "ä"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read here")
def test_files_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(DataError, match=r"a\.jsonl: can't be read"):
        JsonLines(tmp_path)


def test_a_file_that_can_not_be_read_is_named_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n', encoding="utf-8")

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied")
        return open(path, *args, **options)

    monkeypatch.setattr("deepseek.data.readers.rows.open", refuse, raising=False)
    with pytest.raises(DataError, match=r"a\.jsonl: can't be read"):
        JsonLines(tmp_path)
    reader = JsonLines(tmp_path, on_error="skip")
    assert len(reader) == 1 and reader.report.reasons == {"can't be read": 1}


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"RIFF\0\0\0\0WEBP", "image"),
        (b"RIFF\0\0\0\0WAVE", "audio"),
        (b"fLaC", "audio"),
        (b"\x93NUMPY\1\0", "npy"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"text": "a"}\n{', "jsonl"),
        (b'\xef\xbb\xbf{"text": "a"}\n{', "jsonl"),
        (b'{\n "images": [{"file_name": "a.jpg"', "coco"),
        (b'{"images": [], "annotations": []}', "coco"),
        (b'{"info": {}, "images": [' + b"1, " * 50_000, "coco"),
        (b'{"a": 1,\n"b": 2}', "json"),
        (b'[{"messages": [{"message": "x"}]}]', "kdconv"),
        (b"<?xml version='1.0'?><annotation>", "voc"),
        (b"a,b\n1,2\n", "csv"),
        (b"hello there\n", "text"),
        ("中".encode() * 40_000, "text"),  # cut in the middle of a character
        (b"\xff\xfea\0", "UTF-16 text"),
        (b"\x80\x81\x82\x83\x84", "binary"),
        (b"", "empty"),
    ],
)
def test_kinds_of_content(tmp_path: Path, head: bytes, kind: str) -> None:
    path = tmp_path / "some"
    path.write_bytes(head)
    assert kind_of(path) == kind


@given(st.binary(max_size=400))
def test_any_bytes_have_a_kind(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    assert kind_of(path)
