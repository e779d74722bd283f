"""The public data sets, each opened by `open_reader` from its folder, against counts made without it."""

from __future__ import annotations

import csv
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deepseek.data import read_documents
from deepseek.data.readers import (
    CsvTable,
    JsonLines,
    KdConv,
    PascalVoc,
    SegmentationFolder,
    TextLines,
    kdconv_chats,
    open_reader,
    read_idx,
)
from deepseek.errors import DataError

pytestmark = pytest.mark.realdata


def folder(real_data: Path, name: str) -> Path:
    path = real_data / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


def test_blood_cells_are_as_many_as_the_files_say(real_data: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    root = folder(real_data, "vision/bccd")
    reader = open_reader(root)
    assert isinstance(reader, PascalVoc) and len(reader) == 292
    wanted: Counter[str] = Counter()
    for path in (root / "annotations").iterdir():
        wanted.update(re.findall(r"<object>\s*<name>(\w+)</name>", path.read_text(encoding="utf-8")))
    found: Counter[str] = Counter()
    for row in range(0, len(reader)):
        rows = slice(int(reader._first[row]), int(reader._first[row + 1]))
        found.update(reader.class_names[label] for label in reader._labels[rows])
    assert found == wanted and set(found) == {"RBC", "WBC", "Platelets"}
    first = (root / "annotations" / "BloodImage_00000.xml").read_text(encoding="utf-8")
    corners = [int(value) for value in re.findall(r"<[xy]m(?:in|ax)>(\d+)<", first)]
    sample = reader.read(0)
    assert sample["image"].shape == (3, 480, 640) and sample["path"].endswith("BloodImage_00000.jpg")
    boxes = np.array(corners).reshape(-1, 4) - [1, 1, 0, 0]
    assert np.array_equal(sample["boxes"].numpy(), boxes.clip(0, [640, 480, 640, 480]))
    for row in range(0, 292, 40):
        sample = reader.read(row)
        assert len(sample["boxes"]) == len(sample["box_labels"]) > 0


def test_membranes_come_with_their_masks(real_data: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    reader = open_reader(folder(real_data, "vision/membrane"), mask_values=(0, 255))
    assert isinstance(reader, SegmentationFolder) and len(reader) == 25
    for row in range(25):
        sample = reader.read(row)
        assert sample["image"].shape == (3, 512, 512) and sample["mask"].shape == (512, 512)
        share = sample["mask"].double().mean()
        assert 0.6 < share < 0.9  # most of a slice is no membrane
        bright = sample["image"][0].double()
        assert bright[sample["mask"] == 1].mean() > bright[sample["mask"] == 0].mean()  # membranes are dark


def test_mnist(real_data: Path) -> None:
    root = folder(real_data, "vision/mnist_t10k")
    images = open_reader(root / "t10k-images-idx3-ubyte.gz")
    assert len(images) == 10_000 and images.read(9_999)["image"].shape == (1, 28, 28)
    try:
        labels = read_idx(root / "t10k-labels-idx1-ubyte.gz")
    except DataError as error:
        assert "t10k-labels" in str(error) and "cut off" in str(error)
        with pytest.raises(DataError, match="t10k-labels"):
            open_reader(root)
        pytest.skip("the labels of this copy are cut off, which the reader says; their histogram can't be checked")
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    reader = open_reader(root)
    assert len(reader) == 10_000 and [reader.read(row)["label"] for row in range(5)] == [7, 2, 1, 0, 4]


def test_spoken_digits(real_data: Path) -> None:
    root = folder(real_data, "audio/fsdd")
    assert len(open_reader(root)) == 2_500
    reader = open_reader(root, pattern="{digit}_{speaker}_{index}.wav")
    sizes = reader.sizes()
    assert sizes is not None and len(pickle.dumps(reader)) < 2_500 * 120
    speakers: Counter[str] = Counter()
    for row in range(0, 2_500, 25):
        sample = reader.read(row)
        assert sorted(sample) == ["digit", "label", "path", "sample_rate", "speaker", "waveform"]
        assert sample["sample_rate"] == 8_000 and sample["label"] == int(Path(sample["path"]).name[0])
        assert abs(sizes[row] - 44 - 2 * len(sample["waveform"])) < 100
        speakers[sample["speaker"]] += 1
    assert len(speakers) == 5


def test_hotel_reviews(real_data: Path) -> None:
    root = folder(real_data, "text/chnsenticorp")
    reader = open_reader(root)
    with open(next(root.glob("*.csv")), encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert isinstance(reader, CsvTable) and len(reader) == len(rows) == 7_766
    for row in range(7_766):
        sample = reader.read(row)
        assert [str(sample["label"]), sample["text"]] == rows[row]


@pytest.mark.parametrize(("name", "count", "keys"), [("gsm8k", 7_473, {"question", "answer"}), ("ocnli", 10_000, None)])
def test_json_lines(real_data: Path, name: str, count: int, keys: set[str] | None) -> None:
    root = folder(real_data, f"text/{name}")
    reader = open_reader(root)
    assert isinstance(reader, JsonLines) and len(reader) == count
    lines = (root / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for row in range(0, count, 7):
        sample, record = reader.read(row), json.loads(lines[row])
        assert keys is None or set(sample) == keys | {"path"}
        if "label" in record:
            record["label"] = reader.class_names.index(record["label"])
        assert {key: value for key, value in sample.items() if key != "path"} == record


def test_plays(real_data: Path) -> None:
    root = folder(real_data, "text/tinyshakespeare")
    reader = open_reader(root)
    lines = [line for line in (root / "input.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    assert isinstance(reader, TextLines) and len(reader) == len(lines)
    assert [reader.read(row)["text"] for row in range(0, len(lines), 100)] == lines[::100]


def test_travel_dialogues_become_chats(real_data: Path, tmp_path: Path) -> None:
    root = folder(real_data, "dialog/kdconv_travel")
    reader = open_reader(root)
    original = json.loads((root / "dev.json").read_text(encoding="utf-8"))
    assert isinstance(reader, KdConv) and len(reader) == len(original) == 150
    lines = tmp_path / "chats.jsonl"
    with open(lines, "w", encoding="utf-8") as file:
        for chat in kdconv_chats(root):
            file.write(json.dumps(chat, ensure_ascii=False) + "\n")
    documents = list(read_documents(lines))
    for document, dialogue in zip(documents, original, strict=True):
        assert document.messages is not None
        assert [turn.content for turn in document.messages] == [turn["message"] for turn in dialogue["messages"]]
        assert {turn.role for turn in document.messages[::2]} == {"user"}
    facts = {
        (fact["name"], fact["attrname"], fact["attrvalue"])
        for dialogue in original
        for turn in dialogue["messages"]
        for fact in turn.get("attrs", ())
    }
    assert {tuple(triple) for row in range(150) for triple in reader.read(row)["triples"]} == facts


def test_network_connections(real_data: Path) -> None:
    root = folder(real_data, "tabular/nsl_kdd")
    with pytest.raises(DataError, match="3 tables"):
        open_reader(root)  # its files do not have the same columns
    with open(root / "field_names.csv", encoding="utf-8", newline="") as file:
        names = [row[0] for row in csv.reader(file)]
    columns = (*names, "label", "difficulty")
    reader = open_reader(root / "train_20percent.csv", columns=columns)
    assert isinstance(reader, CsvTable) and len(reader) == 25_192 and len(columns) == 43
    with open(root / "train_20percent.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert set(reader.class_names) == {row[-2] for row in rows}
    sample = reader.read(2)
    assert sample["protocol_type"] == "tcp" and reader.class_names[sample["label"]] == "neptune"
    assert isinstance(sample["duration"], int) and isinstance(sample["serror_rate"], float)
