"""REST, gRPC, keys, TLS and watching in one server, and the command that starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import pytest
import torch

from deepseek.bundle import save
from deepseek.cli.serve import main
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import BundleError, ConfigError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.serve import BackgroundServer
from deepseek.serve.options import Safety
from deepseek.serve.rpc.messages import INFERENCE, message_class
from tests.fake_serving import FakeModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Return a small language model's bundle."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bundles") / "small"
    tokenizer = Tokenizer.train(["The method returns a copy of the list. " * 40], vocab_size=280)
    save(
        GPT(GPTConfig(vocab_size=280, max_length=64, num_layers=1, d_model=16, num_heads=2)), path, tokenizer=tokenizer
    )
    return path


def is_ready(address: str, key: str | None, name: str = "m") -> bool:
    """Ask over gRPC whether a model is ready."""
    request, answer = message_class("inference.ModelReadyRequest"), message_class("inference.ModelReadyResponse")
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(
            f"/{INFERENCE}/ModelReady",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return method(request(name=name), metadata=metadata, timeout=30).ready


def test_both_protocols_share_models_and_keys():
    with BackgroundServer({"m": FakeModel("fine ")}, api_key="k-1", grpc_port=0) as server:
        assert is_ready(server.grpc_address, "k-1")
        with pytest.raises(grpc.RpcError) as refused:
            is_ready(server.grpc_address, "k-2")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert httpx.get(server.url + "/v1/models", headers={"authorization": "Bearer k-1"}).status_code == 200
        port = int(server.grpc_address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=str(port)):
            BackgroundServer({"m": FakeModel()}, grpc_port=port).__enter__()
    with pytest.raises(grpc.RpcError):
        is_ready(f"127.0.0.1:{port}", "k-1")


def test_a_bundle_that_appears_in_a_watched_folder_is_served(tmp_path, bundle):
    shutil.copytree(bundle, tmp_path / "first")
    with BackgroundServer({"first": tmp_path / "first"}, folder=tmp_path, watch=True, device="cpu") as server:
        shutil.copytree(bundle, tmp_path / "second")
        for _ in range(2):  # it is taken once two looks saw it the same
            server._running._watcher.step()
        names = {card["id"] for card in httpx.get(server.url + "/v1/models").json()["data"]}
    assert names == {"first", "second"}


def test_sighup_s_work_loads_bundles_anew_and_keeps_what_is_in_memory(tmp_path, bundle):
    shutil.copytree(bundle, tmp_path / "small")
    with BackgroundServer({"small": tmp_path / "small", "m": FakeModel("fine ")}, device="cpu") as server:
        before = server.service.hosted["small"]
        server._running.reload()
        assert server.service.hosted["small"] is not before
        assert server.service.hosted["m"].state == "ready"
        (tmp_path / "small" / "config.yaml").write_text("broken: [")
        server._running.reload()
        assert server.service.hosted["small"].state == "ready"
        body = {"model": "small", "prompt": "The", "max_tokens": 2}
        assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200


def test_a_model_that_breaks_while_it_loads_is_told_alone_and_spares_the_others(tmp_path, bundle):
    shutil.copytree(bundle, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(BundleError):
        BackgroundServer([tmp_path / "torn"], device="cpu").__enter__()
    with BackgroundServer({"torn": tmp_path / "torn", "m": FakeModel("fine ")}, device="cpu") as server:
        codes = [
            httpx.post(server.url + "/v1/completions", json={"model": name, "prompt": "x"}).status_code
            for name in ("torn", "m")
        ]
    assert codes == [503, 200]


def test_a_folder_to_watch_must_be_there(tmp_path):
    for folder in (None, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="folder to watch"):
            BackgroundServer({"m": FakeModel()}, watch=True, folder=folder)


@pytest.fixture
def environment():
    """Return one with a key, and without a compiler: kernels are not worth their time for so small a model."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DEEPSEEK_API_KEY": "k-1", "CXX": "false"}


def test_the_command_with_workers_grpc_and_keys_and_a_worker_killed(bundle, environment, tmp_path):
    command = [sys.executable, "-c", "from deepseek.cli.serve import main; main()", str(bundle)]
    options = ["--port", "0", "--grpc_port", "0", "--workers", "2", "--device", "cpu"]
    options += ["--rate", "6000", "--audit-log", str(tmp_path / "audit.jsonl")]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        line = process.stdout.readline()
        told = r"serving small at (http\S+) \(REST, page at /\), gRPC at (\S+); 1 API key, no TLS, 6000 requests/min, "
        url, address = re.match(told + r"audit log \S+ \(Ctrl-C stops\)", line).groups()
        headers = {"authorization": "Bearer k-1"}
        body = {"prompt": "The", "max_tokens": 2, "temperature": 0}
        first = httpx.post(url + "/v1/completions", json=body, headers=headers, timeout=60).json()["choices"]
        assert is_ready(address, "k-1", "small")
        assert httpx.post(url + "/v1/completions", json=body).status_code == 401
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2  # and one that stands by
        os.kill(int(children[0]), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while httpx.get(url + "/health", timeout=60).json()["restarts"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        again = httpx.post(url + "/v1/completions", json=body, headers=headers, timeout=60).json()["choices"]
        assert again == first
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert httpx.get(url + "/health", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit-0.jsonl", "audit-1.jsonl"]


def run_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["deepseek-serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


def test_new_keys_are_made_into_a_file_that_the_server_reads(monkeypatch, capsys, tmp_path):
    file = tmp_path / "keys.txt"
    keys = []
    for name in ("ann", "bob"):
        code, out, _ = run_main(monkeypatch, capsys, "--new-key", name, "--api-keys", str(file))
        assert code == 0
        keys.append(out.split()[-1])
    assert file.stat().st_mode & 0o777 == 0o600 and not any(key in file.read_text() for key in keys)
    ring = Safety(api_keys=file).keys("0.0.0.0")
    assert [ring.allows(key).name for key in keys] == ["ann", "bob"]
    code, _, err = run_main(monkeypatch, capsys, "--new-key", "ann", "--api-keys", str(file))
    assert code == 2 and "twice" in err and len(file.read_text().splitlines()) == 2


def test_without_a_file_the_line_is_for_a_pipe_and_the_key_for_the_eyes(monkeypatch, capsys):
    code, out, err = run_main(monkeypatch, capsys, "--new-key", "ann", "--rate", "60")
    assert code == 0
    assert re.fullmatch(r"ann: sha256:[0-9a-f]{64} 60/min\n", out) and "ds-" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0", "--workers", "2"], "--insecure"),
        (["--tls-cert", "cert.pem"], "--tls-key"),
        (["--api-keys", "/nowhere/keys"], "--new-key"),
        (["--allow-url-host", "http://x"], "URLs can be allowed"),
        (["--audit-log", "/nowhere/at/all/log"], "audit log"),
        (["--weights", "int3"], "weights"),
        (["--watch"], "folder to watch"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(bundle, arguments, told, monkeypatch, capsys):
    code, _, err = run_main(monkeypatch, capsys, str(bundle), "--port", "0", *arguments)
    assert code == 2 and told in err
