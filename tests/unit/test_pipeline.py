"""Pipelines: the planned order, random numbers by sample alone, errors that name stage and file, and batches."""

from __future__ import annotations

import itertools
import logging
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data import (
    BatchStage,
    CutMix,
    Domain,
    FeatureExtract,
    HorizontalFlip,
    Letterbox,
    MixUp,
    Normalize,
    Pipeline,
    RandomCrop,
    Resample,
    Sample,
    SampleStage,
    SpecAugment,
    collate,
)
from deepseek.data.pipeline.randomness import sample_rng
from deepseek.data.pipeline.stage import Stage
from deepseek.errors import ConfigError, DataError
from deepseek.nn.boxes import cxcywh_to_xyxy
from deepseek.registry import STAGES, resolve


@dataclass(frozen=True)
class AddNoise(SampleStage):
    """Adds a number from the sample's own generator to its tokens' first entry."""

    takes: ClassVar[Domain] = Domain.TOKENS
    gives: ClassVar[Domain] = Domain.TOKENS
    augments: ClassVar[bool] = True

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "input_ids": sample["input_ids"] + int(rng.integers(1 << 40))}


@dataclass(frozen=True)
class Rotate(BatchStage):
    """Gives each sample the tokens of the one before."""

    takes: ClassVar[Domain] = Domain.TOKENS
    gives: ClassVar[Domain] = Domain.TOKENS

    def apply_batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        return [{**sample, "input_ids": samples[place - 1]["input_ids"]} for place, sample in enumerate(samples)]


@dataclass(frozen=True)
class Refuse(SampleStage):
    """Fails on the samples whose first token is odd."""

    takes: ClassVar[Domain] = Domain.TOKENS
    gives: ClassVar[Domain] = Domain.TOKENS

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if int(sample["input_ids"][0]) % 2:
            raise ValueError("odd")
        return sample


def tokens(*indices: int, epoch: int = 0) -> list[dict[str, Any]]:
    return [{"input_ids": torch.tensor([2 * i, 1]), "index": i, "epoch": epoch} for i in indices]


def names(pipeline: Pipeline) -> list[str]:
    return [type(step).__name__ for step in pipeline.steps]


WRITTEN: list[Any] = [
    Resample(target_sr=16000),
    SpecAugment(freq_mask=10, time_mask=20),
    FeatureExtract(type="mfcc", n_mels=80),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_masking_runs_between_the_halves_of_feature_extraction(order: tuple[int, ...]) -> None:
    assert names(Pipeline([WRITTEN[i] for i in order])) == ["Resample", "LogMel", "SpecAugment", "Cepstra"]


def test_the_order_is_shown() -> None:
    shown = repr(Pipeline([WRITTEN[2], WRITTEN[1], MixUp(num_labels=3), Normalize()], seed=4))
    assert "seed 4" in shown and "SpecAugment(freq_mask=10, time_mask=20" in shown
    assert shown.index("waveform -> spectrogram") < shown.index("[spectrogram]") < shown.index("-> input_features")
    assert shown.index("image -> pixel_values") < shown.index("[pixel_values, whole batch]")


@given(st.permutations(list(range(4))))
def test_stages_of_one_domain_keep_their_order(order: list[int]) -> None:
    stages: list[Any] = [HorizontalFlip(p=0.1), RandomCrop(size=4), Normalize(), MixUp(num_labels=2)]
    found = names(Pipeline([stages[i] for i in order]))
    in_image = [type(stages[i]).__name__ for i in order if i < 2]
    assert found == [*in_image, "Normalize", "MixUp"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Resample(), SpecAugment()], r"works on spectrogram, which no stage makes(.|\n)*add FeatureExtract"),
        ([HorizontalFlip(), CutMix(num_labels=2)], r"works on pixels, which no stage makes(.|\n)*add Normalize"),
        ([Normalize(), Normalize()], "two stages use up the image"),
        ([Normalize], "this is no stage(.|\n)*Normalize, a class"),
        (["Resample"], "this is no stage"),
    ],
)
def test_stages_that_can_not_follow_each_other(stages: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline(stages)


def test_a_sample_is_the_same_in_any_batch_and_another_in_each_epoch() -> None:
    pipeline = Pipeline([AddNoise()], seed=3)
    alone = {i: pipeline(tokens(i)[0])["input_ids"].tolist() for i in range(8)}
    shuffled = random.Random(1).sample(range(8), 8)
    together = pipeline(tokens(*shuffled))["input_ids"].tolist()
    assert together == [alone[i] for i in shuffled]
    assert len({tuple(value) for value in alone.values()}) == 8
    assert pipeline(tokens(0, epoch=1)[0])["input_ids"].tolist() != alone[0]
    assert Pipeline([AddNoise()], seed=4)(tokens(0)[0])["input_ids"].tolist() != alone[0]
    copy = pickle.loads(pickle.dumps(pipeline))  # noqa: S301
    assert copy(tokens(5)[0])["input_ids"].tolist() == alone[5]


def test_two_stages_of_one_kind_draw_other_numbers() -> None:
    once, twice = Pipeline([AddNoise()]), Pipeline([AddNoise(), AddNoise()])
    first = int(once(tokens(7)[0])["input_ids"][0]) - 14
    assert int(twice(tokens(7)[0])["input_ids"][0]) - 14 != 2 * first


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 50))
def test_streams_of_samples_do_not_meet(seed: int, epoch: int, index: int, step: int) -> None:
    found = sample_rng(seed, epoch, index, step).integers(1 << 62, size=2).tolist()
    assert found == sample_rng(seed, epoch, index, step).integers(1 << 62, size=2).tolist()
    others = [(seed, epoch + 1, index, step), (seed, epoch, index + 1, step), (seed, epoch, index, step + 1)]
    assert all(sample_rng(*other).integers(1 << 62, size=2).tolist() != found for other in others)


def test_batch_stages_and_sample_stages_mix() -> None:
    found = Pipeline([Rotate(), AddNoise(), Rotate()])(tokens(4, 5, 6))
    assert found["index"].tolist() == [4, 5, 6] and found["input_ids"].shape == (3, 2)


def test_the_input_is_not_changed() -> None:
    samples = tokens(1, 2)
    Pipeline([AddNoise(), Rotate()])(samples)
    assert [sample["input_ids"].tolist() for sample in samples] == [[2, 1], [4, 1]]


def test_an_error_names_stage_sample_and_file() -> None:
    samples = [{**sample, "path": f"data/{sample['index']}.txt"} for sample in tokens(3, 9)]
    samples[1]["input_ids"] = torch.tensor([7])
    with pytest.raises(DataError, match=r"Refuse failed on sample 9 \(data/9.txt\)(.|\n)*ValueError: odd"):
        Pipeline([Refuse()])(samples)
    with pytest.raises(DataError, match="the sample has no 'input_ids'(.|\n)*text"):
        Pipeline([Refuse()])({"text": "x"})


def test_bad_samples_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    samples = [*tokens(1, 2), {"input_ids": torch.tensor([1, 1]), "index": 3, "epoch": 0}]
    with caplog.at_level(logging.WARNING):
        found = Pipeline([Refuse()], on_error="skip")(samples)
    assert found["index"].tolist() == [1, 2] and "sample 3" in caplog.text
    with pytest.raises(DataError, match="no sample of the batch could be used"):
        Pipeline([Refuse()], on_error="skip")(samples[2:])


def test_without_augmentation_the_result_is_that_of_the_others() -> None:
    image = torch.randint(256, (3, 9, 7), dtype=torch.uint8)
    train = Pipeline([HorizontalFlip(p=1.0), Letterbox(size=8), Normalize(), MixUp(num_labels=2)], seed=1)
    plain = train.without_augmentation()
    assert names(plain) == ["Letterbox", "Normalize"] and plain.seed == 1
    wanted = Pipeline([Letterbox(size=8), Normalize()])({"image": image})["pixel_values"]
    assert torch.equal(plain({"image": image})["pixel_values"], wanted)


def test_a_pipeline_is_yaml() -> None:
    pipeline = Pipeline([*WRITTEN, HorizontalFlip(p=0.25), Normalize()], seed=5)
    text = yaml.safe_dump(pipeline.to_config())
    again = Pipeline.from_config(yaml.safe_load(text), seed=5)
    assert repr(again) == repr(pipeline)
    with pytest.raises(ConfigError, match="did you mean 'Resample'"):
        Pipeline.from_config([{"name": "Resampel"}])
    with pytest.raises(ConfigError, match="no setting 'target'(.|\n)*target_sr"):
        Pipeline.from_config([{"name": "Resample", "target": 1}])
    with pytest.raises(ConfigError, match="needs a name"):
        Pipeline.from_config([{"target_sr": 1}])
    with pytest.raises(ConfigError, match="no name in YAML"):
        Pipeline([Rotate()]).to_config()


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_of_the_table_says_where_it_works(name: str) -> None:
    stage: Any = resolve(STAGES, name, "stage")
    assert stage.__name__ == name
    if issubclass(stage, Stage):
        assert isinstance(stage.takes, Domain) and isinstance(stage.gives, Domain)


# --- batches


def test_sequences_are_padded_behind() -> None:
    samples = [
        {"input_features": torch.ones(n, 3), "labels": torch.arange(n), "input_ids": torch.arange(1, n + 1), "label": n}
        for n in (2, 5)
    ]
    batch = collate(samples)
    assert batch["input_features"].shape == (2, 5, 3) and batch["lengths"].tolist() == [2, 5]
    assert batch["input_features"].sum().item() == 21
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5]


def test_target_tokens_are_padded_with_what_losses_ignore() -> None:
    batch = collate([{"labels": torch.tensor([4])}, {"labels": torch.tensor([5, 6])}])
    assert batch["labels"].tolist() == [[4, -100], [5, 6]]


def test_waveforms_of_several_channels_are_padded_in_time() -> None:
    batch = collate([{"waveform": torch.ones(2, 3)}, {"waveform": torch.ones(2, 4)}])
    assert batch["waveform"].shape == (2, 2, 4) and batch["lengths"].tolist() == [3, 4]


def test_boxes_become_rows_of_the_detection_task() -> None:
    boxes = torch.tensor([[2.0, 4.0, 10.0, 8.0], [0.0, 0.0, 20.0, 40.0]])
    image = torch.zeros(3, 40, 20, dtype=torch.uint8)
    samples = [
        {"image": image, "boxes": boxes, "box_labels": torch.tensor([1, 2])},
        {"image": image, "boxes": boxes[:0], "box_labels": torch.zeros(0, dtype=torch.int64)},
    ]
    batch = collate(samples)
    assert batch["counts"].tolist() == [2, 0] and batch["boxes"].shape == (2, 2, 5)
    assert batch["boxes"][0, :, 0].tolist() == [1.0, 2.0]
    back = cxcywh_to_xyxy(batch["boxes"][0, :, 1:]) * torch.tensor([20, 40, 20, 40])
    torch.testing.assert_close(back, boxes)


def test_images_masks_and_shares() -> None:
    image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    sample = {"image": image, "mask": torch.ones(2, 2, dtype=torch.int64), "label": torch.tensor([0.25, 0.75])}
    batch = collate([{**sample, "path": "a"}, {**sample, "path": "b"}], keep=["path"])
    assert batch["pixel_values"].unique().tolist() == [1.0] and batch["masks"].dtype == torch.int64  # type: ignore[no-untyped-call]
    assert batch["labels"].shape == (2, 2) and batch["path"] == ["a", "b"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one sample"),
        ([{"label": 1}, {"text": "x"}], "different keys"),
        ([{"image": torch.zeros(3, 2, 2)}, {"image": torch.zeros(3, 2, 3)}], "add Resize or Letterbox"),
        ([{"input_features": torch.zeros(2, 3)}, {"input_features": torch.zeros(2, 4)}], "differ in shape"),
    ],
)
def test_samples_that_make_no_batch(samples: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate(samples)
