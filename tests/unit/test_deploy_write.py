"""A deployment's folder is written whole or not at all, and nobody's files are lost."""

from __future__ import annotations

import json
import os
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from deepseek.cli.deploy import deploy as commands
from deepseek.deploy.plan import MODEL_DIR
from deepseek.deploy.write import KINDS, MARK, deploy
from deepseek.errors import BundleError, ConfigError, StorageError
from tests.toy_bundle import toy_bundle


@pytest.fixture
def bundle(tmp_path):
    return toy_bundle(tmp_path / "bundles" / "tiny")


@pytest.fixture(autouse=True)
def _without_source(monkeypatch):
    """Leave the framework's source out: hundreds of files that another test looks at."""
    monkeypatch.setattr("deepseek.deploy.write.copy_source", lambda folder: None)


def files_in(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_the_commands_and_is_the_same_each_time(kind, bundle, tmp_path):
    deploy(kind, bundle, tmp_path / "out")
    first = files_in(tmp_path / "out")
    readme = first["README.md"].decode()
    commands_shown = [line for line in readme.split("```")[1].splitlines()[1:] if line and not line.startswith(" ")]
    assert len(commands_shown) == 3
    assert "{{" not in readme and "{%" not in readme
    deploy(kind, bundle, tmp_path / "out")
    assert files_in(tmp_path / "out") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "out"]


def test_another_kind_may_take_the_place_of_ours(bundle, tmp_path):
    deploy("k8s", bundle, tmp_path / "out")
    deploy("helm", bundle, tmp_path / "out")
    assert json.loads((tmp_path / "out" / MARK).read_text())["kind"] == "helm"
    assert not (tmp_path / "out" / "manifests").exists()


def test_an_empty_folder_is_taken(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    deploy("k8s", bundle, tmp_path / "out")
    assert (tmp_path / "out" / "manifests" / "deployment.yaml").is_file()


def test_a_foreign_folder_is_refused_and_force_moves_it_aside(bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no folder of a deployment"):
        deploy("k8s", bundle, out)
    assert files_in(out) == {"thesis.tex": b"years of work"}
    deploy("k8s", bundle, out, force=True)
    assert files_in(tmp_path / "out.before-1") == {"thesis.tex": b"years of work"}
    (out / "manifests" / "service.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"manifests/service\.yaml"):
        deploy("k8s", bundle, out)
    (out / "notes.txt").write_text("mine")
    deploy("k8s", bundle, out, force=True)
    assert files_in(tmp_path / "out.before-2")["manifests/service.yaml"] == b"mine"


def test_a_file_in_the_way_is_refused(bundle, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError):
        deploy("k8s", bundle, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "x"


def test_secrets_stay_when_files_are_written_anew(bundle, tmp_path):
    out = tmp_path / "out"
    deploy("compose", bundle, out)
    (out / "secrets").mkdir(mode=0o700)
    (out / "secrets" / "api_keys").write_text("a: sha256:" + "0" * 64)
    deploy("compose", bundle, out, port=9000)
    assert (out / "secrets" / "api_keys").read_text().startswith("a: ")
    assert (out / "secrets").stat().st_mode & 0o777 == 0o700
    assert "9000" in (out / "compose.yaml").read_text()
    (out / "README.md").write_text("mine")
    deploy("compose", bundle, out, force=True)
    assert (out / "secrets" / "api_keys").read_text().startswith("a: ")


def test_text_of_the_user_is_text_in_the_files(bundle, tmp_path):
    volume = tmp_path / "it's ${HOME} $(id)"
    volume.mkdir()
    deploy("compose", bundle, tmp_path / "compose", volume=str(volume), redis="redis://h/$x")
    server = yaml.safe_load((tmp_path / "compose" / "compose.yaml").read_text())["services"]["server"]
    assert server["volumes"][0]["source"].replace("$$", "\0").count("$") == 0
    assert server["volumes"][0]["source"].replace("$$", "$") == str(volume)
    assert server["environment"]["DEEPSEEK_REDIS_URL"] == "redis://h/$$x"
    deploy("docker", bundle, tmp_path / "docker", volume=str(volume), redis="redis://h/$x")
    line = (tmp_path / "docker" / "README.md").read_text().split("```")[1].replace("\\\n", " ").splitlines()[-1]
    words = shlex.split(line)
    assert f"{volume}:{MODEL_DIR}:ro" in words and "DEEPSEEK_REDIS_URL=redis://h/$x" in words


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": "Bad Name"}, ConfigError),
        ({"namespace": "a.b"}, ConfigError),
        ({"image": "m:latest"}, ConfigError),
        ({"memory": "2 GB"}, ConfigError),
        ({"replicas": 0}, ConfigError),
        ({"redis": "redis://:pw@h"}, ConfigError),
        ({"volume": "Not a claim"}, ConfigError),
        ({"host": "$(id)"}, ConfigError),
        ({"unknown": 1}, ConfigError),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(settings, error, bundle, tmp_path):
    with pytest.raises(error):
        deploy("k8s", bundle, tmp_path / "out", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]


def test_what_can_not_be_deployed(bundle, tmp_path):
    with pytest.raises(BundleError):
        deploy("k8s", tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'helm'"):
        deploy("hlem", bundle, tmp_path / "out")
    for volume in ("relative", str(tmp_path / "missing")):
        with pytest.raises(ConfigError, match="mounted"):
            deploy("docker", bundle, tmp_path / "out", volume=volume)
    for out in (bundle, bundle / "deploy", bundle.parent, tmp_path, "/"):
        with pytest.raises(ConfigError):
            deploy("docker", bundle, out, force=True)
    (bundle / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="leads out"):
        deploy("docker", bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses_leaves_all_as_it_was(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepseek.deploy.write.copy_models", full)
    with pytest.raises(StorageError):
        deploy("docker", bundle, out, force=True)
    assert files_in(out) == {"old": b"old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "out"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line(kind, bundle, tmp_path):
    result = CliRunner().invoke(
        commands,
        [kind, str(bundle), "-o", str(tmp_path / "out"), "--gpu", "1", "--name", "m", "--image", "m:2", "--cpu", "3"],
    )
    assert result.exit_code == 0, result.output
    assert f"written: {tmp_path / 'out'}" in result.output.replace("\n", "")
    text = "".join(
        body.decode() for name, body in files_in(tmp_path / "out").items() if not name.startswith("framework")
    )
    assert "nvidia" in text.lower()
    assert os.listdir(tmp_path / "out")


def test_the_command_line_takes_a_run_folder_and_a_clusters_options(bundle, tmp_path):
    run = tmp_path / "run"
    toy_bundle(run / "bundle")
    options = [
        "--namespace",
        "models",
        "--replicas",
        "4",
        "--claim",
        "weights",
        "--redis",
        "redis://r:1/0",
        "--drain",
        "7",
    ]
    result = CliRunner().invoke(commands, ["k8s", str(run), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "manifests" / "deployment.yaml").read_text()
    assert "namespace: models" in text and "replicas: 4" in text and "claimName: weights" in text
    assert "terminationGracePeriodSeconds: 22" in text
