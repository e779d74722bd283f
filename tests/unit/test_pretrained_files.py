"""Weights in the Hugging Face layout: broken, evil and pickled files."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.models.pretrained import from_pretrained
from deepseek.models.pretrained.convert import convert, main
from tests.toy_gpt import toy_gpt

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_gpt().save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    toy_gpt().save_pretrained(tmp_path / "toy", max_shard_size="8KB")
    return tmp_path / "toy"


def assert_equal_weights(found: nn.Module, wanted: nn.Module) -> None:
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


BROKEN = {
    "empty": b"",
    "text": b"not weights at all",
    "header of 8 EB": struct.pack("<Q", 1 << 63) + b"{}",
    "header without end": struct.pack("<Q", 100) + b"{",
    "offsets outside": header(
        {"transformer.wte.weight": {"dtype": "F32", "shape": [48, 16], "data_offsets": [0, 3072]}}
    ),
    "overlap": header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"0000"),
    "shape of 2^80": header({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, b"0000"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_safetensors(content: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="cut short, damaged or not safetensors"):
        from_pretrained(folder)


def test_a_file_cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for length in (4, 200, len(content) - 1):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(ModelError, match="model.safetensors"):
            from_pretrained(folder)


def test_a_number_format_that_is_not_for_us(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["transformer.ln_f.weight"] = state["transformer.ln_f.weight"].to(torch.float8_e4m3fn)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ModelError, match="number format"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../toy/model-00001-of-00003.safetensors",
        "/etc/passwd",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "sub/x.safetensors",
        "..",
        ".hidden.safetensors",
        "model.bin",
        "a\x00b.safetensors",
    ],
)
def test_an_index_that_points_elsewhere(file: str, shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["transformer.wte.weight"] = file
    (shards / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="points outside its folder"):
        from_pretrained(shards)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": None}, "x"], ids=repr)
def test_an_index_that_is_none(weight_map: Any, shards: Path) -> None:
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(ModelError, match="not an index"):
        from_pretrained(shards)


def test_shards_that_are_missing_or_others(shards: Path) -> None:
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(ModelError, match=f"lacks shards.*\n.*{first.name}"):
        from_pretrained(shards)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ModelError, match=f"{first.name} lacks weights"):
        from_pretrained(shards)
    first.write_bytes(content)
    from_pretrained(shards)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def pickled(folder: Path) -> dict[str, Tensor]:
    """Turn the weights in a folder into what older checkpoints have."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    return state


def test_pickled_weights_are_refused_and_converted(folder: Path) -> None:
    pickled(folder)
    with pytest.raises(ModelError, match="python -m deepseek.models.pretrained.convert .*toy"):
        from_pretrained(folder)
    assert convert(folder) == [folder / WEIGHTS]
    assert_equal_weights(from_pretrained(folder), toy_gpt())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS, "pytorch_model.bin"]
    with pytest.raises(ModelError, match="has safetensors already"):
        convert(folder)


def test_pickled_shards_are_converted(folder: Path) -> None:
    state = pickled(folder)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    weight_map = {name: f"pytorch_model-{1 + index % 2}.bin" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert len(convert(folder)) == 3
    assert_equal_weights(from_pretrained(folder), toy_gpt())


def test_code_in_a_pickle_does_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / WEIGHTS).unlink()
    with open(folder / "pytorch_model.bin", "wb") as handle:
        pickle.dump({"a": Evil(folder / "hacked")}, handle)
    assert main([str(folder)]) == 1
    assert "can't be converted" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_small_file_that_would_fill_the_disk(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": torch.zeros(1).expand(1 << 33)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be converted"):
        convert(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_nothing_or_too_much_to_convert(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="no pickled weights"):
        convert(folder)
    for name in ("a.pt", "b.pt", "training_args.bin"):
        (folder / name).touch()
    with pytest.raises(ModelError, match="several pickled files"):
        convert(folder)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../a.bin"}}', encoding="utf-8")
    with pytest.raises(ModelError, match="points outside"):
        convert(folder)
