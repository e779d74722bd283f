"""Weights in the Hugging Face layout: there and back, whole files and shards, the hub, and what does not fit."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models.bert import BERT, BERTConfig
from deepseek.models.gpt import GPT
from deepseek.models.pretrained import from_pretrained, save_pretrained
from deepseek.models.pretrained.fill import build_empty
from deepseek.models.pretrained.rules import Rule
from deepseek.models.pretrained.translate import Source, source_of, to_ours, to_theirs
from tests.toy_gpt import toy_config, toy_gpt

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


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def assert_equal_weights(found: nn.Module, wanted: nn.Module) -> None:
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("size", ["5GB", "8KB", 1])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_read_back(size: int | str, tied: bool, tmp_path: Path) -> None:
    model = toy_gpt(tie_embeddings=tied)
    assert model.save_pretrained(tmp_path / "a", max_shard_size=size) == tmp_path / "a"
    found = GPT.from_pretrained(tmp_path / "a")
    assert_equal_weights(found, model)
    assert (found.lm_head.weight is found.token_embedding.weight) == tied
    assert not found.training
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert sum(len(load_file(file)) for file in files) == (28 if tied else 29)
    if size == "8KB":
        assert len(files) > 2 and (tmp_path / "a" / INDEX).is_file()
        index = json.loads((tmp_path / "a" / INDEX).read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert all(file.stat().st_size < 8000 + 4000 for file in files)
    if size == 1:
        assert len(files) == (28 if tied else 29)


def test_the_number_format_is_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    model = toy_gpt().bfloat16()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    assert {p.dtype for p in from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in from_pretrained(tmp_path, dtype="float32").parameters()} == {torch.float32}
    half = from_pretrained(tmp_path, dtype=torch.float16)
    assert torch.equal(half.token_embedding.weight, model.token_embedding.weight.half())
    for wrong in ("int8", "float8_e4m3fn", "nn", torch.int64):
        with pytest.raises(ModelError, match="not a number format"):
            from_pretrained(tmp_path, dtype=wrong)


def test_a_few_weights_of_another_format_follow_the_others(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({n: t.bfloat16() if "c_attn" not in n else t for n, t in state.items()}, folder / WEIGHTS)
    assert {p.dtype for p in from_pretrained(folder).parameters()} == {torch.bfloat16}


def test_settings_can_be_changed_on_the_way(folder: Path) -> None:
    model = GPT.from_pretrained(str(folder), dropout=0.25, gradient_checkpointing=True, device="cpu")
    assert model.config.dropout == 0.25 and model.config.gradient_checkpointing
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        GPT.from_pretrained(folder, dropuot=0.25)
    with pytest.raises(ConfigError, match="dropout"):
        GPT.from_pretrained(folder, dropout=2)
    with pytest.raises(ModelError, match="wrong shape|lacks"):
        GPT.from_pretrained(folder, d_model=32)


def test_the_weights_have_memory_of_their_own(folder: Path) -> None:
    model, before = from_pretrained(folder), load_file(folder / WEIGHTS)["transformer.wte.weight"].clone()
    with torch.no_grad():
        model.token_embedding.weight.zero_()
    assert torch.equal(load_file(folder / WEIGHTS)["transformer.wte.weight"], before)
    with open(folder / WEIGHTS, "r+b") as handle:
        handle.truncate(16)  # a mapped file would end the process at the next read
    assert model.lm_head.weight.sum() == 0 and model.norm.weight.isfinite().all()


PEAK = """
import sys, torch
from deepseek.models.gpt import GPT

def field(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

GPT.from_pretrained(sys.argv[2])  # everything is imported and warm
before = field("VmRSS")
model = GPT.from_pretrained(sys.argv[1])
size = sum(p.numel() * 4 for p in model.parameters())
print((field("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of memory")
def test_peak_memory_is_about_one_copy(folder: Path, tmp_path: Path) -> None:
    GPT(toy_config(d_model=512, num_layers=8)).save_pretrained(tmp_path / "big")
    child = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "big", folder], capture_output=True, encoding="utf-8", check=False
    )
    assert child.returncode == 0, child.stderr
    assert 0.9 < float(child.stdout) < 1.3


def test_what_is_not_used_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = load_file(folder / WEIGHTS)
    state |= {"extra.weight": torch.zeros(2), "transformer.h.0.attn.bias": torch.ones(1)}
    save_file(state, folder / WEIGHTS)
    with caplog.at_level(logging.WARNING):
        from_pretrained(folder)
    assert "not used by GPT: extra.weight" in caplog.text
    assert "attn.bias" not in caplog.text


def test_norms_in_the_spelling_of_tensorflow(tmp_path: Path) -> None:
    model = BERT(BERTConfig(vocab_size=31, max_length=8, num_layers=1, d_model=16, num_heads=2))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in state.items()}
    assert renamed.keys() != state.keys()
    save_file({f"bert.{name}": tensor for name, tensor in renamed.items()}, tmp_path / WEIGHTS)
    assert_equal_weights(BERT.from_pretrained(tmp_path), model)


def test_missing_weights_are_listed(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["transformer.wpf.weight"] = state.pop("transformer.wpe.weight")
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"no transformer.wpe.weight; not used: transformer.wpf.weight"):
        from_pretrained(folder)


def test_a_weight_of_the_wrong_shape_is_named(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(64, 16)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ModelError, match="transformer.h.1.mlp.c_fc.weight") as caught:
        from_pretrained(folder)
    assert (caught.value.found, caught.value.wanted) == ((64, 16), (16, 64))


def test_another_template_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="holds no BERT"):
        BERT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gtp2"}, "did you mean 'gpt2'"),
        ({"model_type": None}, "unknown family"),
        ({"model_type": ["gpt2"]}, "unknown family"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"activation_function": "relu"}, "no such activation"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_embd": "16"}, "d_model"),
        ({"n_layer": -1}, "num_layers"),
        ({"n_layer": 10**9}, "num_layers"),
        ({"vocab_size": 49}, "wrong shape"),
        ({"n_embd": 65536, "n_head": 1024}, "wrong shape|can't be built"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises((ModelError, ConfigError), match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a": 1} x', b"\xff\xfe", b"[" * 100_000, b"nan"], ids=repr)
def test_a_config_that_is_no_json_object(text: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match="config.json"):
        from_pretrained(folder)


def test_a_folder_that_is_none_or_lacks_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a folder"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not a folder"):
        from_pretrained(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="has no weights"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="config.json is missing"):
        from_pretrained(folder)


def test_a_tokenizer_in_the_folder_stays_and_old_weights_go(shards: Path) -> None:
    (shards / "tokenizer.json").write_text("{}", encoding="utf-8")
    model = toy_gpt(num_layers=1)
    model.save_pretrained(shards)
    assert sorted(path.name for path in shards.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert_equal_weights(from_pretrained(shards), model)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(ModelError, match="is not a checkpoint"):
        toy_gpt().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not a checkpoint"):
        toy_gpt().save_pretrained(tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_models_that_have_no_such_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="our templates"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "a")
    with pytest.raises(ModelError, match="GPT-2 has biases"):
        toy_gpt(bias=False).save_pretrained(tmp_path / "a")
    changed = toy_gpt()
    changed.lm_head = nn.Linear(16, 50, bias=False)
    with pytest.raises(ModelError, match="lm_head.weight: .50, 16. of floats"):
        changed.save_pretrained(tmp_path / "a")
    for size in ("5 apples", 0, "-1GB", "0KB"):
        with pytest.raises(ModelError, match="not a size"):
            toy_gpt().save_pretrained(tmp_path / "a", max_shard_size=size)
    assert not any(tmp_path.iterdir())


def test_a_hub_name_is_downloaded_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert_equal_weights(GPT.from_pretrained("openai-community/gpt2"), toy_gpt())
    assert asked[0][0] == "openai-community/gpt2"
    assert not [pattern for pattern in asked[0][1] if "bin" in pattern or pattern == "*"]


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=offline))
    with pytest.raises(ModelError, match="download these files") as caught:
        from_pretrained("gpt2")
    assert caught.value.found == "no network"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="config.json and model.safetensors"):
        from_pretrained("openai-community/gpt2")
    for name in ("../gpt2", "a/b/c", "gpt2 ", ""):
        with pytest.raises(ModelError):
            from_pretrained(name)


class Tied(nn.Module):
    """A toy with a tie, a table of positions that no file holds, and a stored count."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(width).float().sqrt(), persistent=False)
        self.norm = nn.BatchNorm1d(width)


def test_a_model_is_built_without_memory_but_with_its_tables() -> None:
    built: list[nn.Module] = []

    def beside() -> None:
        built.append(nn.Linear(2, 2))

    class Slow(Tied):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            thread = threading.Thread(target=beside)
            thread.start()
            thread.join()

    model = build_empty(Slow, 5)
    assert all(p.is_meta for p in model.parameters())
    assert model.get_parameter("second.weight") is model.get_parameter("first.weight")
    assert torch.equal(model.get_buffer("table"), torch.arange(5).float().sqrt())
    assert not any(p.is_meta for p in built[0].parameters())  # another thread's model has its memory
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_model_too_large_for_any_machine() -> None:
    def huge(config: None) -> nn.Module:
        return nn.Linear(1 << 31, 1 << 31)

    with pytest.raises(ModelError, match="can't be built"):
        build_empty(huge, None)  # type: ignore[arg-type]


def test_rules_in_both_directions() -> None:
    rules = (
        Rule("a.{}.qkv.", ("b.{}.q.", "b.{}.k.", "b.{}.v."), "concat"),
        Rule("a.{}.experts.{}.up", "b.{}.x.{}.e.{e}.up.weight", "stack"),
        Rule("a.{}.up.weight", "b.{}.fc.weight", "transpose"),
        Rule("a.", "c."),
    )
    assert source_of("a.3.qkv.weight", (6, 2), rules) == Source(
        ("b.3.q.weight", "b.3.k.weight", "b.3.v.weight"), "concat"
    )
    assert source_of("a.1.experts.2.up", (2, 3, 4), rules) == Source(
        ("b.1.x.2.e.0.up.weight", "b.1.x.2.e.1.up.weight"), "stack"
    )
    assert source_of("a.0.up.weight", (3, 2), rules) == Source(("b.0.fc.weight",), "transpose")
    assert source_of("a.x.up.weight", (3,), rules) == Source(("c.x.up.weight",), "copy")
    assert source_of("d.x", (3,), rules) is None
    assert source_of("a.", (3,), rules) is None
    for name, shape in (("a.3.qkv.weight", (6, 2)), ("a.1.experts.2.up", (2, 3, 4)), ("a.0.up.weight", (3, 2))):
        source, tensor = source_of(name, shape, rules), torch.randn(shape)
        assert source is not None
        assert torch.equal(to_ours(source, dict(to_theirs(source, tensor)).__getitem__, shape), tensor)


def test_a_new_head_is_drawn_like_in_a_new_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BERTConfig(vocab_size=31, max_length=8, num_layers=1, d_model=16, num_heads=2)
    BERT(config).save_pretrained(tmp_path)
    heads = []
    for _ in range(2):
        torch.manual_seed(4)
        heads.append(BERT.from_pretrained(tmp_path, head="masked_lm", dtype="bfloat16"))
    assert_equal_weights(heads[0], heads[1])
    assert heads[0].head_norm.weight.eq(1).all() and not heads[0].head_norm.bias.any()
    assert heads[0].lm_head.weight is heads[0].token_embedding.weight
    assert {p.dtype for p in heads[0].parameters()} == {torch.bfloat16}
