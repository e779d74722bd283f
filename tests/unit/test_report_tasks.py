"""The report of tasks other than language modelling: figures, confusion, examples, and nothing from outside the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.report import render_report
from deepseek.road.picture import FOUND, WANTED, mask_image, shown_image, with_boxes, write_png

ATTACK = "<script>alert(1)</script>\"'&"


def page(folder: Path, results: dict[str, Any]) -> str:
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return render_report(folder).read_text(encoding="utf-8")


def results() -> dict[str, Any]:
    return {
        "name": "cells",
        "data": {
            "source": "cells",
            "train_samples": 80,
            "val_samples": 20,
            "classes": ["cat", ATTACK],
            "split": {"by": "speaker", "seed": 3, "held_out": ["ann"]},
        },
        "model": {"name": "ResNet", "parameters": 1000, "config": {}},
        "train": {"steps": 9, "items": 720, "seconds": 3.0},
        "evaluate": {
            "samples": 20,
            "figures": {"loss": 0.51234, "accuracy": 0.87654, "odd_figure": 12.5},
            "baselines": {"accuracy": 0.55},
        },
        "examples": {
            "rows": [
                {"wanted": "cat", "found": ATTACK, "text": ATTACK},
                {"wanted": "cat", "found": "dog", "text": "", "picture": "examples/000.png"},
            ],
            "classes": ["cat", ATTACK],
            "confusion": [[12, 1], [2, 5]],
        },
    }


def test_figures_confusion_and_examples_are_shown(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    write_png(tmp_path / "examples" / "000.png", torch.zeros(3, 4, 5, dtype=torch.uint8))
    html = page(tmp_path, results())
    for part in (
        "0.877",
        "0.512",
        "odd figure",
        "准确率",
        "0.550",
        "80 samples",
        "speaker: ann (seed 3)",
        ">12<",
        ">5<",
    ):
        assert part in html, part
    assert html.count("data:image/png;base64,") == 1
    assert ATTACK not in html and "&lt;script&gt;" in html
    assert "nats per token" not in html and "tokens/s" not in html


@pytest.mark.parametrize(
    "name", ["../secret.png", "examples/../../secret.png", "secret.png", "/etc/hostname", "examples/not.png", "", 7]
)
def test_only_pictures_of_the_run_get_onto_the_page(name: object, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "examples").mkdir(parents=True)
    write_png(tmp_path / "secret.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    write_png(run / "secret.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    (run / "examples" / "not.png").write_text("no picture")
    changed = results()
    changed["examples"]["rows"] = [{"wanted": "a", "picture": name}]
    assert "base64" not in page(run, changed)


@pytest.mark.parametrize(
    "damage",
    [
        {"confusion": [[1]]},
        {"confusion": "x"},
        {"confusion": [["a", None], [1, 2]]},
        {"rows": [1, None, {}, {"found": 3}]},
        {"classes": 5},
    ],
)
def test_a_damaged_section_does_not_break_the_page(damage: dict[str, Any], tmp_path: Path) -> None:
    changed = results()
    changed["examples"] |= damage
    assert "0.877" in page(tmp_path, changed)


def test_pictures_are_what_they_show(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = with_boxes(
        shown_image(torch.linspace(0, 1, 48).reshape(1, 6, 8)), torch.tensor([[0.0, 0.0, 0.5, 0.5]]), FOUND
    )
    write_png(tmp_path / "a.png", image)
    with image_module.open(tmp_path / "a.png") as read:
        assert read.size == (8, 6) and read.getpixel((0, 0)) == FOUND and read.getpixel((7, 5)) == (255, 255, 255)
        assert read.getpixel((4, 3)) == FOUND and read.getpixel((1, 1)) != FOUND
    write_png(tmp_path / "b.png", torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3))
    with image_module.open(tmp_path / "b.png") as read:
        assert read.mode == "L" and [read.getpixel((x, y)) for y in range(2) for x in range(3)] == list(range(6))
    assert shown_image(torch.rand(3, 900, 700)).shape == (3, 300, 234)
    mask = mask_image(torch.tensor([[0, 1], [2, 1]]), 3, (4, 4))
    assert mask[0].unique().tolist() == [0, 127, 254] and mask.shape == (3, 4, 4)
    assert WANTED != FOUND
