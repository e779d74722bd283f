"""Bundles: what is saved comes back the same, damage and danger are refused, and a failed save leaves the old one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deepseek as ds
from deepseek.bundle import Bundle, load, save
from deepseek.data import Tokenizer
from deepseek.errors import BundleError, ConfigError, StorageError
from deepseek.models.gpt import GPT
from deepseek.quantization import QuantConfig, quantize_model
from tests.system import file_size_limit
from tests.toy_gpt import toy_config, toy_gpt

IDS = torch.randint(48, (2, 9), generator=torch.Generator().manual_seed(0))


def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a cat and a dog and a cat"] * 4, 270, allow_smaller=True)


def half(model: nn.Module) -> nn.Module:
    return model.bfloat16()


def int8(model: nn.Module) -> nn.Module:
    return quantize_model(model, QuantConfig(method="dynamic"))


def weight_only(model: nn.Module) -> nn.Module:
    return quantize_model(model, QuantConfig(method="weight_only"))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS)
        return found


@pytest.mark.parametrize("name", ["bundle", "model.pt"])
@pytest.mark.parametrize("form", [lambda model: model, half, int8, weight_only], ids=["fp32", "bf16", "int8", "int8w"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_comes_back_bit_by_bit(
    tmp_path: Path, name: str, form: Callable[[nn.Module], nn.Module], tied: bool
) -> None:
    model = form(toy_gpt(tie_embeddings=tied)).eval()
    path = save(model, tmp_path / name, tokenizer=tokenizer())
    bundle = load(path, device="cpu")
    found, wanted = bundle.model.state_dict(), model.state_dict()
    assert {key: tensor.dtype for key, tensor in found.items()} == {key: t.dtype for key, t in wanted.items()}
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert torch.equal(logits(bundle.model), logits(model))
    assert not bundle.model.training and bundle.tokenizer is not None
    assert bundle.tokenizer.sha256 == tokenizer().sha256
    bundle.verify()
    again = load(save(bundle.model, tmp_path / "again", tokenizer=bundle.tokenizer), device="cpu")
    assert torch.equal(logits(again.model), logits(model))


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = toy_gpt()
    path = save(model, tmp_path / "bundle")
    stored = load_file(path / "model.safetensors")
    assert ("lm_head.weight" in stored) != ("token_embedding.weight" in stored)
    loaded = load(path, device="cpu")
    assert isinstance(loaded.model, GPT) and loaded.model.lm_head.weight is loaded.model.token_embedding.weight
    assert loaded.num_parameters == sum(p.numel() for p in model.parameters())
    loaded.model.train()(IDS).sum().backward()
    with torch.no_grad():
        loaded.model.token_embedding.weight.zero_()
    assert not loaded.model.lm_head.weight.any()


def test_a_bundle_says_all_about_itself(tmp_path: Path) -> None:
    path = ds.save(toy_gpt(), tmp_path / "bundle", tokenizer=tokenizer(), report={"loss": 1.5})
    bundle = ds.load(path)
    assert isinstance(bundle, Bundle) and bundle.config.task == "language_modeling"
    assert bundle.config.model == {"name": "GPT", **toy_config().to_dict()}
    assert set(bundle.files) == {"config.yaml", "model.safetensors", "tokenizer.json", "golden.json", "report.json"}
    assert json.loads((path / "report.json").read_text()) == {"loss": 1.5}
    assert all(size > 0 for size in bundle.files.values())


def test_text_comes_out_of_a_bundle(tmp_path: Path) -> None:
    words = tokenizer()
    bundle = load(save(toy_gpt(vocab_size=words.vocab_size), tmp_path / "b.pt", tokenizer=words), device="cpu")
    text = bundle.generate("a cat", max_new_tokens=5)
    assert isinstance(text, str)
    assert isinstance(bundle.generate("", max_new_tokens=5, do_sample=True, seed=1), str)
    plain = load(save(toy_gpt(), tmp_path / "plain"), device="cpu")
    with pytest.raises(BundleError, match="no tokenizer"):
        plain.generate("a cat")


def test_golden_samples_notice_changed_weights(tmp_path: Path) -> None:
    path = save(toy_gpt(), tmp_path / "bundle")
    state = load_file(path / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in state.items()}, path / "model.safetensors")
    with pytest.raises(BundleError, match="differently than when it was saved"):
        load(path).verify()
    for damaged in (
        {},
        {"inputs": 3},
        {"inputs": {"input_ids": {"dtype": "int64", "values": [[10**6]]}}, "answers": []},
        {"inputs": {"input_ids": {"dtype": "int64", "values": [[1]]}}, "answers": []},
        {"inputs": {"input_ids": {"dtype": "object", "values": [[1]]}}, "answers": []},
    ):
        (path / "golden.json").write_text(json.dumps(damaged))
        with pytest.raises(BundleError, match="golden samples of .* are damaged"):
            load(path).verify()


def edit_config(path: Path, old: str, new: str) -> None:
    text = (path / "config.yaml").read_text()
    assert old in text
    (path / "config.yaml").write_text(text.replace(old, new))


def cut_short(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def huge_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def drop_weight(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state.pop("norm.weight")
    save_file({**state, "extra": torch.zeros(2)}, path / "model.safetensors")


def reshape_weight(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file({**state, "norm.weight": torch.ones(17)}, path / "model.safetensors")


def whole_numbers(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file({name: tensor.to(torch.int64) for name, tensor in state.items()}, path / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (lambda path: (path / "config.yaml").unlink(), ["not a bundle", "no config.yaml"]),
    "later version": (
        lambda path: edit_config(path, "format_version: 1", "format_version: 2"),
        ["another bundle version", "version 2", "version 1"],
    ),
    "no version": (lambda path: edit_config(path, "format_version: 1\n", ""), ["another bundle version", "None"]),
    "later version with new keys": (
        lambda path: edit_config(path, "format_version: 1", "format_version: 7\nnovelty: 1"),
        ["another bundle version"],
    ),
    "unknown key": (lambda path: edit_config(path, "task:", "tasks:"), ["config.yaml", "did you mean 'task'"]),
    "unknown task": (lambda path: edit_config(path, "language_modeling", "telepathy"), ["unknown task"]),
    "unknown model": (lambda path: edit_config(path, "name: GPT", "name: GTP"), ["did you mean 'GPT'"]),
    "python object": (
        lambda path: edit_config(path, "task: language", "task: !!python/object/apply:os.abort []\nx: language"),
        ["config.yaml:2", "not plain"],
    ),
    "not YAML": (lambda path: (path / "config.yaml").write_text("{"), ["not valid YAML"]),
    "empty config": (lambda path: (path / "config.yaml").write_text(""), ["config.yaml", "empty"]),
    "other sizes": (lambda path: edit_config(path, "d_model: 16", "d_model: 32"), ["do not fit", "other shapes"]),
    "tied to nothing": (
        lambda path: edit_config(path, ": token_embedding.weight", ": nowhere.weight"),
        ["damaged", "nowhere.weight"],
    ),
    "int8 layer that is none": (
        lambda path: edit_config(path, "quantization: {}", "quantization: {norm: {kind: linear, mode: dynamic}}"),
        ["can't become quantized"],
    ),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), ["can't be read"]),
    "cut short": (cut_short, ["can't be read", "cut short"]),
    "empty weights": (lambda path: (path / "model.safetensors").write_bytes(b""), ["can't be read"]),
    "huge header": (huge_header, ["can't be read"]),
    "missing and extra weights": (drop_weight, ["missing ['norm.weight']", "unexpected ['extra']"]),
    "other shape": (reshape_weight, ["other shapes ['norm.weight']"]),
    "whole numbers": (whole_numbers, ["do not fit"]),
    "tokenizer": (lambda path: (path / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
    "golden": (lambda path: (path / "golden.json").write_text("{"), ["golden.json", "damaged"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    path = save(toy_gpt(), tmp_path / "bundle", tokenizer=tokenizer())
    damage(path)
    with pytest.raises(BundleError) as caught:
        load(path, device="cpu")
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Evil:
    """Runs a command when unpickled by a loader that is not careful."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("where", ["file", "torch file", "field", "weights", "folder"])
def test_a_pickle_is_never_executed(tmp_path: Path, where: str) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / ("bundle" if where in {"weights", "folder"} else "model.pt")
    if where == "file":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif where == "torch file":
        torch.save(Evil(mark), path)
    elif where == "field":
        save(toy_gpt(), path)
        torch.save({**torch.load(path, weights_only=True), "golden": Evil(mark)}, path)
    elif where == "weights":
        save(toy_gpt(), path)
        torch.save({"norm.weight": Evil(mark)}, path / "model.safetensors")
    else:
        save(toy_gpt(), path)
        (path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
        (path / "golden.json").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(BundleError):
        load(path, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", pickle.dumps({"a": 1})],
    ids=["empty", "text", "plain pickle"],
)
def test_files_that_are_no_bundles_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(BundleError, match="can't be read as a bundle"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "can't be read as a bundle"),
        ({"state_dict": 5}, "can't be read as a bundle"),
        ({"config": "format_version: 3\n"}, "another bundle version"),
        ({"config": "format_version: 1\nmodel: {name: GPT, layers: 3}\n"}, "unknown key 'layers'"),
        ({"state_dict": {"norm.weight": torch.ones(16)}}, "missing"),
        ({"tokenizer": "{}"}, "tokenizer"),
    ],
)
def test_single_files_are_checked_like_folders(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = save(toy_gpt(), tmp_path / "model.pt", tokenizer=tokenizer())
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    with pytest.raises(BundleError, match=words):
        load(path)


def test_a_missing_path_names_its_neighbours_and_a_run_folder_its_bundle(tmp_path: Path) -> None:
    save(toy_gpt(), tmp_path / "run" / "bundle")
    with pytest.raises(BundleError, match="did you mean 'run'"):
        load(tmp_path / "rum")
    with pytest.raises(BundleError, match="RUN/bundle"):
        load(tmp_path / "run")
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "no" / "where")
    with pytest.raises(ConfigError, match="unknown device"):
        load(tmp_path / "run" / "bundle", device="gpu")


def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("my: settings\n")
    (tmp_path / "notes").write_text("mine")
    for name in ("project", "notes"):
        with pytest.raises(BundleError, match="is not a bundle"):
            save(toy_gpt(), tmp_path / name)
    assert (tmp_path / "project" / "config.yaml").read_text() == "my: settings\n"
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(toy_gpt(), tmp_path / "empty")


def test_models_and_tasks_that_a_bundle_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="only models of our templates"):
        save(nn.Linear(2, 2), tmp_path / "x")
    with pytest.raises(BundleError, match="did you mean 'language_modeling'"):
        save(toy_gpt(), tmp_path / "x", task="language_modelling")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_can_be_saved_over_itself(tmp_path: Path) -> None:
    path = save(toy_gpt(), tmp_path / "bundle")
    wanted = logits(load(path).model)
    for _ in range(2):
        save(load(path).model, path)
    assert torch.equal(logits(load(path).model), wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["bundle", "model.pt"])
@pytest.mark.parametrize("failure", ["too large", "fsync"])
def test_a_save_that_fails_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: str
) -> None:
    path = save(toy_gpt(), tmp_path / name)
    wanted = logits(load(path).model)
    other = GPT(toy_config(d_model=64))
    if failure == "too large":
        with file_size_limit(4000), pytest.raises(StorageError, match="File too large"):
            save(other, path)
    else:
        with monkeypatch.context() as patch:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match="free some space"):
                save(other, path)
    assert torch.equal(logits(load(path).model), wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_whoever_may_read_a_bundle_may_read_its_weights(tmp_path: Path) -> None:
    folder = save(toy_gpt(), tmp_path / "bundle", tokenizer=tokenizer())
    assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1
