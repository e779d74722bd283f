"""The Compose project: its parts are wired, and closed to all but two ports."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deepseek.deploy.plan import MODEL_DIR, REDIS_URL
from deepseek.deploy.write import deploy
from deepseek.serve.security.keys import KeyRing
from tests.toy_bundle import toy_bundle

VARIANTS = {
    "plain": {},
    "gpu": {"gpu": 2, "cpu": "1500m", "memory": "3Gi", "host": "::1", "grpc_port": 0},
    "redis": {"redis": "redis://cache:6380/1", "volume": "/"},
}
SERVICE_KEYS = set(
    "build cap_drop command deploy environment healthcheck image networks ports read_only restart secrets security_opt "
    "stop_grace_period tmpfs user volumes".split()
)
"""Keys of a service in the Compose specification that these projects use."""
DURATION = re.compile(r"(\d+(us|ms|s|m|h))+")
BYTES = re.compile(r"\d+(b|k|m|g|kb|mb|gb)")


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    toy_bundle(folder / "bundles" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepseek.deploy.write.copy_source", lambda folder: None)
        plan = deploy("compose", folder / "bundles" / "tiny", folder / "out", **VARIANTS[request.param])
    return folder / "out", plan, yaml.safe_load((folder / "out" / "compose.yaml").read_text())


def test_the_project_has_the_specifications_form(written):
    _, plan, project = written
    assert set(project) == {"name", "services", "networks", "volumes", "secrets"}
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", project["name"])
    for service in project["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert isinstance(service["user"], str)
        assert set(service["networks"]) <= set(project["networks"])
        assert set(service.get("secrets", ())) <= set(project["secrets"])
        assert all(isinstance(value, str) for value in service.get("environment", {}).values())
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0 and isinstance(limits["cpus"], str)
        assert BYTES.fullmatch(limits["memory"])
        check = service["healthcheck"]
        assert check["test"][0] == "CMD"
        assert all(DURATION.fullmatch(check[key]) for key in ("interval", "timeout", "start_period"))
        named = {
            volume.partition(":")[0]
            for volume in service.get("volumes", ())
            if isinstance(volume, str) and volume[0] != "."
        }
        assert named <= set(project["volumes"])
    assert set(project["volumes"]) <= set(project["services"])


def test_every_container_is_closed(written):
    _, plan, project = written
    for name, service in project["services"].items():
        assert service["user"].partition(":")[0].isdigit() and not service["user"].startswith("0")
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        tag = plan.image if name == "server" else service["image"]
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-\w+)?", tag)


def test_two_services_are_seen_outside_and_only_here(written):
    _, plan, project = written
    ports = {name: service["ports"] for name, service in project["services"].items() if "ports" in service}
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    served = [port for port in (plan.port, plan.grpc_port) if port]
    assert ports == {"server": [f"{host}:{port}:{port}" for port in served], "grafana": [f"{host}:3000:3000"]}
    assert project["networks"]["back"] == {"internal": True}
    for name in {"prometheus", "redis"} & set(project["services"]):
        assert project["services"][name]["networks"] == ["back"]


def test_the_server_is_the_images_with_keys_from_a_file(written):
    _, plan, project = written
    server = project["services"]["server"]
    assert server["command"] == [*plan.command, "--api-keys", "/run/secrets/api_keys"]
    assert int(server["stop_grace_period"][:-1]) > plan.drain_seconds
    redis = plan.redis or "redis://redis:6379/0"
    assert server["environment"] == {"OMP_NUM_THREADS": str(plan.threads), REDIS_URL: redis}
    assert ("redis" in project["services"]) is (plan.redis is None)
    devices = server["deploy"]["resources"].get("reservations", {}).get("devices", [])
    assert [device["count"] for device in devices] == ([plan.gpu] if plan.gpu else [])
    mounts = [volume["target"] for volume in server.get("volumes", ())]
    assert mounts == ([MODEL_DIR] if plan.volume else [])


def test_mounted_files_are_there(written):
    folder, _, project = written
    for service in project["services"].values():
        for volume in service.get("volumes", ()):
            if isinstance(volume, str) and volume.startswith("."):
                assert volume.endswith(":ro")
                assert (folder / volume.partition(":")[0]).is_dir()


def test_prometheus_asks_the_server_and_knows_the_alerts(written):
    folder, plan, _ = written
    config = yaml.safe_load((folder / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{plan.port}"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/prometheus_key"
    (rules,) = config["rule_files"]
    groups = yaml.safe_load((folder / "prometheus" / Path(rules).name).read_text())["groups"]
    assert [rule["alert"] for group in groups for rule in group["rules"]]


def test_alerts_and_dashboard_ask_for_metrics_of_ours(written):
    from deepseek.serve.monitoring.definitions import SCRAPED
    from deepseek.serve.monitoring.promql import selectors

    folder, _, _ = written
    groups = yaml.safe_load((folder / "prometheus" / "alerts.yml").read_text())["groups"]
    asked = [rule["expr"] for group in groups for rule in group["rules"]]
    dashboard = json.loads((folder / "grafana" / "dashboards" / "deepseek.json").read_text())
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    names = {selected.name for query in asked for selected in selectors(query)}
    assert names and names <= {*SCRAPED, "up"}


def test_grafana_finds_prometheus_and_the_dashboard(written):
    folder, _, project = written
    provisioning = folder / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "deepseek.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in project["services"]["grafana"]["volumes"])
    assert list((folder / mounts[provider["options"]["path"]]).glob("*.json"))


def test_secrets_are_made_once_and_the_server_gets_hashes(written):
    folder, _, project = written
    script = folder / "make-secrets.sh"
    first = subprocess.run(["sh", script], capture_output=True, text=True, check=True)
    key = re.search(r"told only now: (\w{64})", first.stdout)[1]
    secrets = folder / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {f"./secrets/{path.name}" for path in secrets.iterdir()} == {
        one["file"] for one in project["secrets"].values()
    }
    ring = KeyRing.read(secrets / "api_keys")
    scrape = (secrets / "prometheus_key").read_text()
    assert (ring.allows(key).name, ring.allows(scrape).name) == ("client", "prometheus")
    assert key not in "".join(path.read_text() for path in secrets.iterdir())
    kept = {path: path.read_bytes() for path in secrets.iterdir()}
    assert subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout == ""
    assert {path: path.read_bytes() for path in secrets.iterdir()} == kept
