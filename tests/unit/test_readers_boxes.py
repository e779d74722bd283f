"""COCO and Pascal-VOC: boxes, classes and masks of small sets made here, and files that are wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.data.pipeline import Pipeline
from deepseek.data.readers import Coco, PascalVoc, open_reader
from deepseek.data.readers.box_checks import settle_boxes
from deepseek.data.readers.voc import MAX_XML_BYTES, parse_xml
from deepseek.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def save_image(path: Path, width: int = 8, height: int = 6, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, value, value)).save(path)


def coco_file(root: Path, annotations: list[dict[str, Any]]) -> Path:
    """Write two images and a COCO file with these annotations."""
    for name in ("a.png", "b.png"):
        save_image(root / "images" / name)
    images = [
        {"id": 7, "file_name": "b.png", "width": 8, "height": 6},
        {"id": 3, "file_name": "a.png", "width": 8, "height": 6},
    ]
    content = {
        "images": images,
        "annotations": [{"id": 100 + place, "iscrowd": 0, **one} for place, one in enumerate(annotations)],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


SQUARE = {"image_id": 3, "category_id": 4, "bbox": [1, 2, 3, 2], "segmentation": [[1, 2, 4, 2, 4, 4, 1, 4]]}
RUNS = {
    "image_id": 3,
    "category_id": 90,
    "bbox": [0, 0, 8, 6],
    "segmentation": {"size": [6, 8], "counts": [0, 48]},
}


def test_coco_boxes_and_classes(tmp_path: Path) -> None:
    crowd = {**SQUARE, "iscrowd": 1}
    path = coco_file(tmp_path, [SQUARE, crowd, RUNS])
    for reader in (open_reader(tmp_path), open_reader(path)):
        assert isinstance(reader, Coco)
        assert reader.class_names == ("cat", "dog") and len(reader) == 2
        empty, full = reader.read(0), pickle.loads(pickle.dumps(reader)).read(1)
        assert full["path"].endswith("images/a.png") and empty["path"].endswith("images/b.png")
        assert full["image"].shape == (3, 6, 8)
        assert full["boxes"].tolist() == [[1, 2, 4, 4], [0, 0, 8, 6]] and full["box_labels"].tolist() == [0, 1]
        assert full["boxes"].dtype == torch.float32 and full["box_labels"].dtype == torch.int64
        assert empty["boxes"].shape == (0, 4) and empty["box_labels"].shape == (0,)
    assert len(Coco(tmp_path, crowds=True).read(1)["boxes"]) == 3
    batch = Pipeline([])([{**reader.read(row), "index": row} for row in range(2)])
    assert batch["counts"].tolist() == [0, 2]


def test_coco_masks(tmp_path: Path) -> None:
    coco_file(tmp_path, [SQUARE, RUNS])
    masks = Coco(tmp_path, masks="instances").read(1)["masks"]
    assert masks.shape == (2, 6, 8) and masks.dtype == torch.uint8
    assert masks[0].sum() == 6 and masks[0, 2:4, 1:4].all() and masks[1].all()
    classes = Coco(tmp_path, masks="classes").read(1)["mask"]
    expected = np.full((6, 8), 2)
    expected[2:4, 1:4] = 1  # the smaller region is on top, though it comes first
    assert np.array_equal(classes.numpy(), expected)
    assert Coco(tmp_path, masks="classes").read(0)["mask"].sum() == 0
    coco_file(tmp_path, [SQUARE, {**RUNS, "segmentation": {"size": [6, 8], "counts": [0, 47]}}])
    with pytest.raises(DataError, match=r"annotation 101: the run lengths do not fit"):
        Coco(tmp_path, masks="instances").read(1)


@pytest.mark.parametrize(
    "box", [[5, 1, 6, 2], [-3, 1, 5, 2], [1, 1, 0, 2], [1, 1, -2, 2], [1, 1, float("nan"), 2], [1e308, 1, 1e308, 2]]
)
def test_coco_boxes_outside_their_image(tmp_path: Path, box: list[float]) -> None:
    coco_file(tmp_path, [SQUARE, {**SQUARE, "bbox": box}])
    with pytest.raises(DataError, match="annotation 101: the box is not inside its image") as caught:
        open_reader(tmp_path)
    assert "8 x 6" in str(caught.value) and "on_bad_box" in str(caught.value)
    assert len(Coco(tmp_path, on_bad_box="drop").read(1)["boxes"]) == 1
    kept = Coco(tmp_path, on_bad_box="clip").read(1)["boxes"]
    assert len(kept) == (2 if box[0] in (5, -3) else 1)
    assert (kept >= 0).all() and (kept[:, 2] <= 8).all() and (kept[:, 3] <= 6).all()
    with pytest.raises(ConfigError, match="on_bad_box"):
        Coco(tmp_path, on_bad_box="ignore")  # type: ignore[arg-type]


def test_up_to_a_pixel_outside_is_rounding() -> None:
    boxes, keep = settle_boxes(
        np.array([[-1.0, -0.5, 9.0, 6.2]]), np.array([8]), np.array([6]), "raise", lambda row: str(row)
    )
    assert keep.all() and boxes.tolist() == [[0, 0, 8, 6]]


@pytest.mark.parametrize(
    ("annotations", "more", "problem"),
    [
        ([{**SQUARE, "image_id": 99}], {}, "annotation 100: no such image"),
        ([{**SQUARE, "category_id": [4]}], {}, "annotation 100: no such category"),
        ([{**SQUARE, "bbox": [1, 2, 3]}], {}, "annotation 100: no box"),
        ([{**SQUARE, "bbox": ["1", 2, 3, 4]}], {}, "annotation 100: no box"),
        ([{**SQUARE, "bbox": [10**400, 2, 3, 4]}], {}, "annotation 100: no box"),
        ([], {"images": []}, "has no images"),
        ([], {"images": [{"id": 1, "file_name": "a.png", "width": 10**9, "height": 1}]}, "image of a wrong form"),
        ([], {"images": [{"id": 1, "file_name": "a.png"}]}, "image of a wrong form"),
        ([], {"images": [{"id": 1, "file_name": "gone.png", "width": 8, "height": 6}]}, "not near it"),
        ([], {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}] * 2}, "two images"),
        ([], {"images": None}, "no list 'images'"),
        ([], {"annotations": [5]}, "no list 'annotations'"),
        ([], {"categories": [{"id": 1}]}, "category of a wrong form"),
    ],
)
def test_coco_files_of_a_wrong_form(
    tmp_path: Path, annotations: list[dict[str, Any]], more: dict[str, Any], problem: str
) -> None:
    path = coco_file(tmp_path, annotations)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **more}), encoding="utf-8")
    with pytest.raises(DataError, match=problem) as caught:
        Coco(path)
    assert "instances.json" in str(caught.value)


def test_coco_files_that_are_not_json_or_not_of_these_images(tmp_path: Path) -> None:
    path = coco_file(tmp_path, [SQUARE])
    save_image(tmp_path / "images" / "a.png", width=9)
    with pytest.raises(DataError, match="not the image that was annotated"):
        Coco(path).read(1)
    (tmp_path / "annotations" / "other.json").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="2 COCO files"):
        open_reader(tmp_path)
    assert len(open_reader(tmp_path, annotations="annotations/other.json", kind="coco")) == 2
    for content in (b'{"images": [', b"[" * 100_000, b"\xff", b"[]"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"instances\.json"):
            Coco(path)


def voc_set(root: Path, objects: str, size: str = "<size><width>8</width><height>6</height></size>") -> Path:
    """Write a Pascal-VOC set of one image and return its XML file."""
    save_image(root / "JPEGImages" / "one.png")
    path = root / "Annotations" / "one.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<annotation><filename>one.png</filename>{size}{objects}</annotation>", encoding="utf-8")
    return path


def voc_object(name: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    voc_set(
        tmp_path,
        voc_object("wbc", 1, 1, 8, 6)
        + voc_object("rbc", 3, 2, 3, 2, "<difficult>1</difficult>")
        + voc_object("rbc", 2, 2, 4, 5),
    )
    reader = open_reader(tmp_path)
    assert isinstance(reader, PascalVoc) and reader.class_names == ("rbc", "wbc")
    sample = pickle.loads(pickle.dumps(reader)).read(0)
    assert sample["boxes"].tolist() == [[0, 0, 8, 6], [2, 1, 3, 2], [1, 1, 4, 5]]  # one pixel wide is one pixel wide
    assert sample["box_labels"].tolist() == [1, 0, 0] and sample["path"].endswith("one.png")
    assert len(PascalVoc(tmp_path, difficult=False).read(0)["boxes"]) == 2
    assert PascalVoc(tmp_path, class_names=("wbc", "rbc")).read(0)["box_labels"].tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match="lacks a class"):
        PascalVoc(tmp_path, class_names=("wbc",))
    with pytest.raises(IndexError):
        reader.read(1)


def test_voc_boxes_outside_their_image(tmp_path: Path) -> None:
    objects = voc_object("a", 1, 1, 2, 2) + voc_object("a", 4, 1, 20, 5)
    voc_set(tmp_path, objects)
    with pytest.raises(DataError, match=r"one\.xml, object 2: the box is not inside"):
        open_reader(tmp_path)
    assert PascalVoc(tmp_path, on_bad_box="clip").read(0)["boxes"].tolist() == [[0, 0, 2, 2], [3, 0, 8, 5]]
    assert PascalVoc(tmp_path, on_bad_box="drop").read(0)["boxes"].tolist() == [[0, 0, 2, 2]]
    voc_set(tmp_path, objects, size="")  # the size is known when the image is read
    with pytest.raises(DataError, match=r"one\.xml, object 2: the box is not inside"):
        PascalVoc(tmp_path).read(0)
    assert PascalVoc(tmp_path, on_bad_box="clip").read(0)["boxes"].tolist() == [[0, 0, 2, 2], [3, 0, 8, 5]]


def test_voc_files_of_a_wrong_form(tmp_path: Path) -> None:
    voc_set(tmp_path, "<object><name>a</name></object>")
    with pytest.raises(DataError, match="object 1: incomplete"):
        open_reader(tmp_path)
    path = voc_set(tmp_path, "", size="<size><width>9</width><height>6</height></size>")
    with pytest.raises(DataError, match="not the image that was annotated"):
        open_reader(tmp_path).read(0)
    path.write_bytes(b"<annotation><filename>")
    with pytest.raises(DataError, match="not valid XML"):
        open_reader(tmp_path)
    voc_set(tmp_path, "").rename(tmp_path / "Annotations" / "two.xml")
    assert len(open_reader(tmp_path)) == 1  # found by <filename>
    (tmp_path / "JPEGImages" / "one.png").rename(tmp_path / "JPEGImages" / "three.png")
    with pytest.raises(DataError, match=r"two\.xml has no image"):
        open_reader(tmp_path)
    (tmp_path / "JPEGImages" / "three.png").unlink()
    with pytest.raises(DataError, match="Pascal-VOC needs the images"):
        open_reader(tmp_path)


def test_xml_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xml"
    lol = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bombs = [
        f'<!DOCTYPE annotation [<!ENTITY e0 "lol">{lol}]><annotation>&e9;</annotation>',
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        '<!DOCTYPE annotation SYSTEM "http://example.com/x.dtd"><annotation/>',
    ]
    for bomb in bombs:
        for encoding in ("utf-8", "utf-16"):
            path.write_bytes(bomb.encode(encoding))
            with pytest.raises(DataError, match=r"bomb\.xml: a document type"):
                parse_xml(path)
    path.write_bytes(b"<a>" * 50_000)
    with pytest.raises(DataError, match="not valid XML"):
        parse_xml(path)
    path.write_bytes(b"<a>" * 50_000 + b"</a>" * 50_000)
    parse_xml(path)
    path.write_bytes(b"<a>" + b" " * MAX_XML_BYTES + b"</a>")
    with pytest.raises(DataError, match="too large"):
        parse_xml(path)
