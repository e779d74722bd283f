"""What the tasks for images and speech measure, against the functions that measure a whole set at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.evaluate.detection import evaluate_detection
from deepseek.evaluate.segmentation import evaluate_segmentation
from deepseek.metrics.error_rate import character_error_rate, word_error_rate
from deepseek.models import build
from deepseek.models.conformer import ConformerOutput
from deepseek.tasks.detection import Detection
from deepseek.tasks.image_classification import ImageClassification, count_correct
from deepseek.tasks.segmentation import Segmentation
from deepseek.tasks.speech import SpeechRecognition
from deepseek.tasks.task import evaluate, mean_loss

TOYS = Path(__file__).parent.parent / "toys"


def toy(name: str) -> Any:
    torch.manual_seed(0)
    return build(TOYS / f"{name}.yaml")


def test_a_detectors_evaluation_is_loss_and_average_precision_in_one_pass() -> None:
    model = toy("yolov5")
    size, classes = model.config.image_size, model.config.num_labels
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        boxes = torch.rand(3, 2, 5, generator=generator) * 0.4 + 0.3
        boxes[..., 0] = torch.randint(classes, (3, 2), generator=generator)
        pixels = torch.rand(3, 3, size, size, generator=generator)
        batches.append({"pixel_values": pixels, "boxes": boxes, "counts": torch.tensor([2, 1, 0])})
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = evaluate(model, batches, Detection())
    handle.remove()
    assert len(calls) == 2 and set(found) == {"loss", "map50", "map", "recall50", "recall"}
    scores = evaluate_detection(model, batches, classes, Detection(min_score=0.001)).report()
    assert {key: found[key] for key in scores} == pytest.approx(scores)
    assert found["loss"] == pytest.approx(mean_loss(model, batches, Detection()), rel=1e-6)
    with pytest.raises(DataError, match="shares of the image"):
        Detection().loss(model, {**batches[0], "boxes": batches[0]["boxes"] * size})
    with pytest.raises(DataError, match="go past the boxes"):
        Detection().loss(model, {**batches[0], "counts": torch.tensor([3, 0, 0])})
    with pytest.raises(ConfigError, match="min_score"):
        Detection(min_score=1.5)


def test_a_segmentations_evaluation_is_loss_dice_and_iou_in_one_pass() -> None:
    model = toy("unet_plus_plus")
    inputs = model.example_inputs(2)["pixel_values"]
    classes = max(Segmentation().predict(model, inputs).shape[1], 2)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        masks = torch.randint(classes, (2, *inputs.shape[2:]), generator=generator)
        masks[0, :2] = -100
        batches.append({"pixel_values": torch.randn(inputs.shape, generator=generator), "masks": masks})
    found = evaluate(model, batches, Segmentation())
    scores = evaluate_segmentation(model, batches)
    assert {key: found[key] for key in ("dice", "iou", "accuracy")} == pytest.approx(scores.report())
    for label in range(classes):
        assert found[f"dice_{label}"] == pytest.approx(scores.dice[label])
        assert found[f"iou_{label}"] == pytest.approx(scores.iou[label])
    assert found["loss"] == pytest.approx(mean_loss(model, batches, Segmentation()), rel=1e-6)
    for wrong, named in (
        (batches[0]["masks"][:, 1:], "wrong shape"),
        (batches[0]["masks"].float(), "class numbers"),
        (batches[0]["masks"] + classes, "unknown class"),
    ):
        with pytest.raises(DataError, match=named):
            Segmentation().loss(model, {**batches[0], "masks": wrong})


class Spoken(nn.Module):
    """Says the frames' tokens, of which the features hold the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = toy("conformer").config.replace(decoder={"vocab_size": 30})
        self.scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> ConformerOutput:
        logits = nn.functional.one_hot(features[..., 0].long(), 30) * self.scale
        lengths = torch.full((len(features),), features.shape[1]) if lengths is None else lengths
        return ConformerOutput(logits, None, lengths)


def spelled(*texts: str, length: int) -> list[list[int]]:
    """Return a row of letters, 1 for a and 27 for a space, filled up with blanks."""
    rows = [[27 if letter == " " else ord(letter) - 96 for letter in text] for text in texts]
    return [row + [0] * (length - len(row)) for row in rows]


def test_speech_is_measured_in_tokens_or_in_characters_and_words() -> None:
    heard, said = ["a cat", "my dogs"], ["a cut", "my dogs"]
    batch = {
        "input_features": torch.tensor(spelled(*heard, length=9))[..., None].float(),
        "lengths": torch.tensor([9, 9]),
        "labels": torch.tensor([[token or -100 for token in row] for row in spelled(*said, length=7)]),
    }
    found = evaluate(Spoken(), [batch, batch], SpeechRecognition())
    assert found["token_error_rate"] == pytest.approx(1 / 12) and found["text_error_rate"] == 0.5

    def to_text(tokens: list[int]) -> str:
        return "".join(" " if token == 27 else chr(96 + token) for token in tokens)

    found = evaluate(Spoken(), [batch], SpeechRecognition(to_text=to_text))
    assert found["cer"] == pytest.approx(character_error_rate(said, heard).rate)
    assert found["wer"] == pytest.approx(word_error_rate(said, heard).rate) and "token_error_rate" not in found
    assert found["loss"] == pytest.approx(mean_loss(Spoken(), [batch], SpeechRecognition()))


def test_images_are_measured_by_their_classes() -> None:
    model, generator = toy("resnet"), torch.Generator().manual_seed(0)
    inputs = model.example_inputs(8)["pixel_values"]
    classes = ImageClassification().predict(model.eval(), inputs).shape[1]
    batch = {
        "pixel_values": torch.randn(inputs.shape, generator=generator),
        "labels": torch.randint(classes, (8,), generator=generator),
    }
    batch["labels"][3] = -100
    task = ImageClassification(label_smoothing=0.1)
    found = evaluate(model, [batch], task)
    right = count_correct(task.predict(model, batch["pixel_values"]), batch["labels"])
    assert found["accuracy"] == right / 7 and task.count(batch) == 7
    wanted = nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])
    assert found["loss"] == pytest.approx(float(wanted.detach()), rel=1e-5)
