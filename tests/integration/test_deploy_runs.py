"""The command line that containers run, and `python -m deepseek.deploy`: real processes, a real and tiny bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from deepseek.cli.serve import serve_command
from deepseek.data.tokenizer import Tokenizer
from deepseek.deploy.plan import API_KEY, MODEL_DIR, REDIS_URL, USER, DeployPlan
from deepseek.deploy.probe import well
from deepseek.deploy.write import deploy
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.serve.options import ServerLimits

ROOT = Path(__file__).parents[2]
TEXT = "The method returns a copy of the list. If the key is missing, a KeyError is raised. " * 20
SERVE = "import sys; sys.argv = ['deepseek-serve', *sys.argv[1:]]; from deepseek.cli.serve import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a tiny bundle and the build context made of it, which every user may read."""
    from deepseek.bundle import save

    folder = tmp_path_factory.mktemp("deploy")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=300, max_length=64, num_layers=1, d_model=16, num_heads=2))
    save(model, folder / "bundles" / "tiny", tokenizer=Tokenizer.train([TEXT], vocab_size=300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepseek.deploy.write.copy_source", lambda folder: None)
        deploy("docker", folder / "bundles", folder / "docker")
    return folder


def accepted() -> dict[str, typer.core.TyperOption]:
    """Return the options of `deepseek serve`, by each of their names."""
    app = typer.Typer()
    app.command()(serve_command)
    command = typer.main.get_command(app)
    return {name: option for option in command.params for name in option.opts}


def test_every_option_and_variable_is_one_that_the_server_takes():
    options = accepted()
    plan = DeployPlan(memory="1Gi", cpu="1")
    used = [word for word in [*plan.command, "--api-keys"] if word.startswith("--")]
    assert set(used) <= set(options)
    assert options["--api-key"].envvar == API_KEY
    for name in {"--redis", "--redis-url", "--redis_url"} & set(options):
        assert options[name].envvar == REDIS_URL
    assert plan.drain_seconds == ServerLimits().drain_seconds == options["--drain"].default


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def image_environment(folder: Path, place: Path) -> dict[str, str]:
    """Return what the Dockerfile's last ENV sets, with `place` where /tmp would be, and this interpreter's paths."""
    text = (folder / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ENV") and "HOME=" in line]
    pairs = dict(part.split("=", 1) for part in line.split()[1:])
    placed = {name: value.replace("/tmp", str(place)) for name, value in pairs.items() if name != "PATH"}
    return {**placed, "PATH": os.defpath, "PYTHONPATH": str(ROOT)}


def powerless() -> tuple[list[str], dict[str, Any]]:
    """Return words before a command line and arguments for Popen that start a process without rights.

    As root: as the image's user where that one can read this Python, else as a root without capabilities (to whom
    a read-only folder is read-only too). As another user: just so.
    """
    if os.geteuid() != 0:
        return [], {}
    who = {"user": USER, "group": USER, "extra_groups": []}
    code = f"import typer; open({str(ROOT / 'deepseek' / '__init__.py')!r})"
    try:
        subprocess.run([sys.executable, "-c", code], check=True, cwd="/", capture_output=True, **who)
    except (OSError, subprocess.SubprocessError):
        return (["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if shutil.which("setpriv") else []), {}
    return [], who


@pytest.fixture
def shared(folder):
    """Return a folder that the image's user can reach, with the models, a read-only `home` and a `tmp` of its own."""
    with tempfile.TemporaryDirectory(prefix="deploy-") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(folder / "docker" / "models", place / "models")
        (place / "home").mkdir(mode=0o555)
        (place / "tmp").mkdir()
        if "user" in powerless()[1]:
            os.chown(place / "tmp", USER, USER)
        yield place


def opened(process: subprocess.Popen[str]) -> str:
    """Return the line that tells where the server listens."""
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the server ended: {process.communicate()}")
    return line


def ended(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(30)
    finally:
        process.kill()
        process.communicate()


def test_the_images_command_serves_as_nobody_from_a_read_only_home(folder, shared):
    port, grpc_port = free_ports(2)
    text = (folder / "docker" / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", text, re.M)[1])
    moved = {MODEL_DIR: str(shared / "models"), "8080": str(port), "8081": str(grpc_port)}
    assert command[0] == "deepseek-serve"
    before, who = powerless()
    line = [*before, sys.executable, "-B", "-c", SERVE, *(moved.get(word, word) for word in command[1:])]
    placed = {"HOME": str(shared / "home"), "TMPDIR": str(shared / "tmp"), API_KEY: "k-1", "DEEPSEEK_NATIVE": "0"}
    environment = {**image_environment(folder, shared / "tmp"), **placed}
    process = subprocess.Popen(
        line,
        cwd=shared / "home",
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **who,
    )
    try:
        assert "tiny" in opened(process)
        rights = Path(f"/proc/{process.pid}/status")
        if before and rights.exists():
            assert re.search(r"CapEff:\s+0+$", rights.read_text(), re.M)
        probe = [sys.executable, "-m", "deepseek.deploy.probe", f"http://127.0.0.1:{port}/ready"]
        assert subprocess.run(probe, env=environment, timeout=60).returncode == 0
        body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 4}).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer k-1"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
        with socket.create_connection(("127.0.0.1", grpc_port), timeout=10):
            pass
        assert not list((shared / "home").iterdir()), "something was written where nothing can be"
    finally:
        code = ended(process)
    assert code == 0
    assert not well(f"http://127.0.0.1:{port}/health", seconds=1)


def test_python_m_deepseek_deploy_serves_at_once(folder):
    line = [sys.executable, "-m", "deepseek.deploy", "--model_path", str(folder / "bundles"), "--device", "cpu"]
    process = subprocess.Popen(
        [*line, "--port", "0", "--grpc_port", "0"],
        cwd=ROOT,
        env={**os.environ, "DEEPSEEK_NATIVE": "0"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        said = opened(process)
        url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        assert "gRPC" in said
        assert well(f"{url}/ready")
        assert not well(f"{url}/nowhere")
    finally:
        code = ended(process)
    assert code == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model_path", "missing", "--device", "cpu"], "missing does not exist"),
        (["--model_path", "BUNDLE", "--device", "tpu"], "unknown device"),
        (["--model_path", "BUNDLE", "--device", "cuda:99"], "cuda"),
        (["--model_path", "BUNDLE", "--device", "cpu", "--host", "0.0.0.0"], "everyone who can reach this machine"),
    ],
)
def test_what_can_not_be_served_is_told(options, problem, folder, monkeypatch, capsys):
    from deepseek.deploy.__main__ import main

    words = [str(folder / "bundles") if word == "BUNDLE" else word for word in options]
    monkeypatch.setattr(sys, "argv", ["deploy", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (1, 2)
    assert problem in capsys.readouterr().err


def test_the_probe_asks_plain_http_only():
    for url in ("https://127.0.0.1/", "file:///etc/passwd", "http://127.0.0.1:1/", "http://127.0.0.1:port/", ""):
        assert not well(url, seconds=1)
