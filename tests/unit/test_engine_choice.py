"""Which engine answers: what is in vLLM's way and how it is told, and what vLLM is given of a bundle."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.bundle import save
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import BundleError, ConfigError, DeepSeekError, MissingExtraError, ModelError
from deepseek.models.generation import SamplingConfig
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.serve.hosted import Hosted
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Job, Piece
from deepseek.serve.text.engine_choice import make_engine
from deepseek.serve.text.models import BundleModel
from deepseek.serve.text.vllm_engine import VllmEngine
from deepseek.serve.text.vllm_folder import with_vocabulary
from tests import fake_vllm
from tests.fake_serving import FakeModel
from tests.paged_texts import toy

Saved = Callable[..., Path]
FREE, TOTAL = 60 << 30, 80 << 30


class OnCuda(BundleModel):
    """A bundle that says it is on a CUDA device."""

    _where = torch.device("cuda", 0)

    @property
    def device(self) -> torch.device:
        return self._where

    def move(self, device: torch.device | str) -> None:
        self._where = torch.device(device)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["The key is missing. A list of keys, and a copy of the list. " * 30], vocab_size=270)


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder, known = tmp_path_factory.mktemp("bundles"), dict[str, Path]()

    def path(name: str, bits: int = 32, **changes: Any) -> Path:
        key = f"{name}{bits}{len(changes)}"
        if key not in known:
            model = toy(name, vocab_size=280, **changes)
            model = model if bits == 32 else quantize_model(model, QuantConfig(weight_bits=bits))
            known[key] = save(model, folder / key, tokenizer=tokenizer)
        return known[key]

    return path


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr("deepseek.serve.text.vllm_folder.cache_folder", lambda: tmp_path / "native")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, TOTAL))
    return fake_vllm.install(monkeypatch)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"model": "fake"}, ConfigError, "bundles alone"),
        ({"model": "cpu"}, ConfigError, "--device cuda"),
        ({"weights": "int8"}, ConfigError, "--weights bf16"),
        ({"bits": 8}, ModelError, "quantized"),
        ({"name": "lstm"}, ModelError, "no public counterpart"),
    ],
    ids=str,
)
def test_what_vllm_is_not_for_is_told_where_it_was_asked_for(
    saved: Saved, vllm: Any, caplog: pytest.LogCaptureFixture, change: dict[str, Any], error: type[Exception], told: str
) -> None:
    path = saved(change.get("name", "llama"), change.get("bits", 32))
    kind = {"cpu": BundleModel, None: OnCuda}.get(change.get("model"))
    model: Any = FakeModel() if kind is None else kind.load(path, "cpu")
    limits = EngineLimits(weights=change.get("weights", "auto"), kv_bytes=1 << 20)
    with pytest.raises(error) as caught:
        make_engine(model, limits.replace(engine="vllm"))
    assert told in str(caught.value) and isinstance(caught.value, DeepSeekError)
    if not isinstance(model, OnCuda):  # our own engine runs on the device, which is not there
        with caplog.at_level(logging.WARNING):
            assert isinstance(make_engine(model, limits), Engine)
        assert not caplog.records


def test_without_vllm_its_install_line_is_told(saved: Saved) -> None:
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        make_engine(OnCuda.load(saved("llama"), "cpu"), EngineLimits(engine="vllm"))


def test_a_vllm_of_another_interface_is_told(saved: Saved, vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vllm, "AsyncLLMEngine")
    monkeypatch.setattr(vllm, "__version__", "0.1.2")
    with pytest.raises(ConfigError, match=r"(?s)version 0\.1\.2.*0\.33"):
        make_engine(OnCuda.load(saved("llama"), "cpu"), EngineLimits(engine="vllm"))


def test_a_model_that_this_vllm_does_not_know_is_told(saved: Saved, vllm: Any) -> None:
    with pytest.raises(ConfigError, match="(?s)does not know this model.*DeepseekV3"):
        make_engine(OnCuda.load(saved("deepseek_moe"), "cpu"), EngineLimits(engine="vllm"))


def test_a_vllm_that_fails_as_it_starts_leaves_the_model_where_it_was(
    saved: Saved, vllm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(args: Any) -> Any:
        raise ValueError("Free memory on device is less than desired\nand more")

    monkeypatch.setattr(fake_vllm.AsyncLLMEngine, "opens", staticmethod(fail))
    model = OnCuda.load(saved("llama"), "cpu")
    with pytest.raises(BundleError, match="less than desired"):
        make_engine(model, EngineLimits(engine="vllm"))
    assert model.device == torch.device("cuda", 0)
    monkeypatch.setattr("deepseek.serve.text.engine_choice.Engine", lambda *args: args)
    assert make_engine(model, EngineLimits()) == (model, EngineLimits())
    assert "our own engine answers in place of vLLM" in caplog.text


def test_limits_reach_vllm_and_those_nobody_set_are_its_own(saved: Saved, vllm: Any) -> None:
    def opened(index: int = 0, **limits: Any) -> fake_vllm.AsyncEngineArgs:
        model = OnCuda.load(saved("llama"), "cpu")
        model._where = torch.device("cuda", index)
        engine = Hosted("one", model, EngineLimits(**limits)).engine
        assert isinstance(engine, VllmEngine) and model.device.type == "cpu"
        engine.close()
        args: fake_vllm.AsyncEngineArgs = engine._client.args
        return args

    plain = opened(max_active=5)
    assert plain == fake_vllm.AsyncEngineArgs(
        plain.model, "float32", 64, 5, enable_prefix_caching=True, gpu_memory_utilization=0.675,
        generation_config="vllm", disable_log_stats=True,
        structured_outputs_config=fake_vllm.StructuredOutputsConfig("guidance", True),
    )  # fmt: skip
    told = opened(2, block_size=32, max_batch_tokens=4096, kv_bytes=1 << 30, prefix_cache=False, weights="bf16")
    assert (told.block_size, told.max_num_batched_tokens, told.kv_cache_memory_bytes) == (32, 4096, 1 << 30)
    assert (told.enable_prefix_caching, told.dtype, told.device_ids) == (False, "bfloat16", [2])
    assert told.model == plain.model  # written once


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_transformers_reads_what_vllm_is_given_and_says_what_our_engine_says(
    saved: Saved, vllm: Any, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, name: str
) -> None:
    transformers = pytest.importorskip("transformers")

    def opens(args: fake_vllm.AsyncEngineArgs) -> fake_vllm.Says:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model).eval()
        words = transformers.AutoTokenizer.from_pretrained(args.model)
        assert theirs.config.vocab_size == tokenizer.vocab_size == len(words)
        assert words("A list of keys")["input_ids"] == tokenizer.encode("A list of keys")
        assert words.eos_token_id == tokenizer.eos_id

        @torch.no_grad()
        def says(prompt: Any, count: int, params: fake_vllm.SamplingParams) -> int:
            history = histories.setdefault(tuple(prompt), list(prompt))
            history.append(int(theirs(torch.tensor([history])).logits[0, -1].argmax()))
            return history[-1]

        histories: dict[tuple[int, ...], list[int]] = {}
        return says

    monkeypatch.setattr(fake_vllm.AsyncLLMEngine, "opens", staticmethod(opens))
    path, prompt = saved(name, max_length=64), tokenizer.encode("A copy of the")
    limits = EngineLimits(kv_bytes=1 << 20)
    texts = [_text(make_engine(kind.load(path, "cpu"), limits), prompt) for kind in (OnCuda, BundleModel)]
    assert texts[0] == texts[1] != ""


def test_a_vllm_that_died_makes_its_model_one_that_is_not_ready(saved: Saved, vllm: Any) -> None:
    hosted = Hosted("one", OnCuda.load(saved("llama"), "cpu"), EngineLimits())
    hosted.state = "ready"
    hosted.engine.start()
    assert hosted.state == "ready"
    hosted.engine._client.errored = True
    assert hosted.state == "failed"
    hosted.engine.close()


def test_a_model_with_fewer_tokens_is_the_same_for_those(saved: Saved) -> None:
    for name in ("gpt", "llama"):  # the first one's output layer is its embedding
        model = toy(name)
        smaller: Any = with_vocabulary(model, 50)
        ids = torch.randint(50, (2, 9))
        with torch.no_grad():
            torch.testing.assert_close(smaller(ids), model(ids)[..., :50])
        assert (smaller.lm_head.weight is smaller.token_embedding.weight) == model.config.tie_embeddings
        assert with_vocabulary(model, model.config.vocab_size) is model


def test_the_folder_is_whole_and_of_the_public_layout(saved: Saved, vllm: Any, tmp_path: Path) -> None:
    model = OnCuda.load(saved("llama"), "cpu")
    make_engine(model, EngineLimits()).close()
    (folder,) = (tmp_path / "vllm").iterdir()
    assert folder.name == model.fingerprint
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}


def _text(engine: Engine | VllmEngine, prompt: list[int]) -> str:
    events, ended = list[Event](), threading.Event()

    def sink(event: Event) -> None:
        events.append(event)
        if not isinstance(event, Piece):
            ended.set()

    engine.start()
    engine.submit([Job(prompt, SamplingConfig(temperature=0, max_new_tokens=12))], sink)
    assert ended.wait(60)
    engine.close()
    assert isinstance(events[-1], Done), events[-1]
    return "".join(event.text for event in events if isinstance(event, Piece))
