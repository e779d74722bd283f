"""Manifests against Kubernetes' schemas and its restricted pod standard, and the chart against the manifests."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deepseek.deploy.manifests import KUBERNETES, helm_files, kubernetes_files, trees
from deepseek.deploy.plan import API_KEY, DeployPlan
from deepseek.deploy.surroundings import QUEUE_METRIC
from deepseek.deploy.tree import Setting, resolve
from deepseek.deploy.values import ENTRIES, values_of, values_schema, values_yaml
from deepseek.serve import BackgroundServer
from tests.fake_serving import FakeModel
from tests.helm_chart import render

VARIANTS = {
    "plain": {},
    "gpu": {"gpu": 2, "namespace": "models", "image": "r.example/team/m:1.0-cuda"},
    "claim": {"volume": "weights.v1", "grpc_port": 0, "port": 9000, "replicas": 1, "drain_seconds": 0},
    "redis": {"redis": "redis://cache.data:6380/0", "name": "a" * 40},
    "secret": {"redis_secret": "cache", "name": "0", "cpu": "2500m", "memory": "1.5Gi"},
}
OPERATORS = {"ServiceMonitor", "ScaledObject"}
"""Kinds of operators' own; Kubernetes has no schema for them."""


@pytest.fixture(params=VARIANTS, ids=str)
def plan(request):
    return DeployPlan(**{"memory": "2Gi", "cpu": "2", **VARIANTS[request.param]})


def documents(files: dict[str, str], folder: str = "") -> dict[str, dict]:
    found = {path: yaml.safe_load(text) for path, text in files.items() if path.endswith(".yaml")}
    return {path: one for path, one in found.items() if path.startswith(folder) and one and "kind" in one}


def only(files: dict[str, str], kind: str) -> dict:
    (one,) = [one for one in documents(files).values() if one["kind"] == kind]
    return one


def test_manifests_are_what_kubernetes_takes(plan):
    manifests = documents(kubernetes_files(plan), "manifests/")
    assert {one["kind"] for one in manifests.values()} >= {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    for one in manifests.values():
        for version in (KUBERNETES, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(one, version, strict=True)


def test_the_validator_would_see_a_mistake(plan):
    wrong = only(kubernetes_files(plan), "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_pods_fit_the_restricted_standard(plan):
    pod = only(kubernetes_files(plan), "Deployment")["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 10000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}} <= {
        "emptyDir",
        "persistentVolumeClaim",
    }
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_default_is_three_replicas_and_gpus_are_a_limit():
    assert only(kubernetes_files(DeployPlan(memory="1Gi", cpu="1")), "Deployment")["spec"]["replicas"] == 3
    deployment = only(kubernetes_files(DeployPlan(memory="4Gi", cpu="4", gpu=1)), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["args"][container["args"].index("--device") + 1] == "cuda"


def test_parts_find_each_other(plan):
    files = kubernetes_files(plan)
    deployment, service = only(files, "Deployment"), only(files, "Service")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for kind, path in (
        ("PodDisruptionBudget", ("selector", "matchLabels")),
        ("NetworkPolicy", ("podSelector", "matchLabels")),
    ):
        found = only(files, kind)["spec"]
        for key in path:
            found = found[key]
        assert found.items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == names
    assert {port["port"] for port in only(files, "NetworkPolicy")["spec"]["ingress"][0]["ports"]} == set(names)
    assert names["http"] == plan.port
    assert names.get("grpc", 0) == plan.grpc_port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in names
    scaled = only(files, "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicas"] == deployment["spec"]["replicas"] <= scaled["maxReplicas"]
    assert container["envFrom"] == [{"configMapRef": {"name": only(files, "ConfigMap")["metadata"]["name"]}}]
    assert {one["metadata"]["namespace"] for one in documents(files).values() if one["kind"] != "Namespace"} == {
        plan.namespace
    }


def test_stopping_leaves_time_for_running_requests(plan):
    pod = only(kubernetes_files(plan), "Deployment")["spec"]["template"]["spec"]
    before = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + plan.drain_seconds


def test_the_command_is_the_images(plan):
    (container,) = only(kubernetes_files(plan), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] + container["args"] == plan.command


def test_keys_come_from_a_secret_and_stand_in_no_file(plan):
    files = kubernetes_files(plan)
    (container,) = only(files, "Deployment")["spec"]["template"]["spec"]["containers"]
    (key,) = [one for one in container["env"] if one["name"] == API_KEY]
    assert set(key) == {"name", "valueFrom"}
    assert "Secret" not in {one["kind"] for one in documents(files).values()}


def test_the_network_is_closed_but_for_what_is_needed(plan):
    spec = only(kubernetes_files(plan), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    out = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    redis = {6380} if plan.redis else {6379} if plan.redis_secret else set()
    assert out == {53} | redis


def test_scaling_follows_a_metric_that_servers_really_have():
    with BackgroundServer({"m": FakeModel("x")}) as server, urlopen(f"{server.url}/metrics") as response:
        scraped = response.read().decode()
    assert f"\n{QUEUE_METRIC}{{" in scraped
    files = kubernetes_files(DeployPlan(memory="1Gi", cpu="1"))
    assert f'"{QUEUE_METRIC}"' in json.dumps(only(files, "HorizontalPodAutoscaler"))
    assert QUEUE_METRIC in files["options/prometheus-adapter.yaml"]
    assert f"sum({QUEUE_METRIC}{{" in files["options/keda.yaml"]


def chart(files: dict[str, str], values: dict, name: str, namespace: str) -> dict[str, dict]:
    texts = {Path(path).name: text for path, text in files.items() if path.startswith("templates/")}
    found = {path: yaml.safe_load(render(text, values, name, namespace)) for path, text in texts.items()}
    return {path: one for path, one in found.items() if one is not None}


def test_the_chart_gives_the_manifests(plan):
    files = helm_files(plan)
    rendered = chart(files, yaml.safe_load(files["values.yaml"]), plan.name, plan.namespace)
    plain = documents(kubernetes_files(plan), "manifests/")
    assert rendered == {Path(path).name: one for path, one in plain.items() if one["kind"] != "Namespace"}


def test_the_chart_with_everything_switched_the_other_way(plan):
    values = values_of(plan)
    for part in ("autoscaling", "disruptionBudget", "networkPolicy", "serviceMonitor", "keda"):
        values[part]["enabled"] = not values[part]["enabled"]
    values |= {
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"gpu": 'yes: "it\'s" {{'},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "gpu": 0 if plan.gpu else 1,
        "grpcPort": 0 if plan.grpc_port else 8081,
        "model": {"claim": "" if plan.volume else "weights"},
    }
    values["networkPolicy"]["from"] = [{"podSelector": {}}]
    rendered = chart(helm_files(plan), values, "other", "else")
    wanted = {name: resolve(tree, Setting("other", "else", values)) for name, tree in trees().items()}
    assert rendered == {name: one for name, one in wanted.items() if one is not None}
    assert {one["kind"] for one in rendered.values()} == {"ConfigMap", "Deployment", "Service"} | OPERATORS
    for one in rendered.values():
        if one["kind"] not in OPERATORS:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_charts_values_are_documented_and_fit_their_schema(plan):
    files = helm_files(plan)
    values = yaml.safe_load(files["values.yaml"])
    assert values == values_of(plan)
    schema = json.loads(files["values.schema.json"])
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    for wrong in (
        {"replicas": "3"},
        {"replicas": 0},
        {"gpus": 1},
        {"port": 80},
        {"device": "tpu; rm"},
        {"redis": {"uri": ""}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, **wrong}, schema)
    used = "".join(text for path, text in files.items() if path.startswith("templates/"))
    for entry in ENTRIES:
        assert f".Values.{entry.path}" in used, f"{entry.path} has no effect"
        assert f"# {entry.meaning}" in values_yaml(values)
    assert set(values_schema()["properties"]) == {*values, "global"}


def test_the_chart_says_what_it_is(plan):
    chart_file = yaml.safe_load(helm_files(plan)["Chart.yaml"])
    assert chart_file["apiVersion"] == "v2"
    assert chart_file["name"] == plan.name
    assert chart_file["kubeVersion"].startswith(f">={KUBERNETES}")


def test_one_file_is_one_way_of_writing(plan):
    """Files come out alike every time, so that a change of a plan is all that a diff shows."""
    assert kubernetes_files(plan) == kubernetes_files(plan)
    assert helm_files(plan) == helm_files(plan)
