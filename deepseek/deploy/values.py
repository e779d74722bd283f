"""The chart's values: what each is for, what may stand there, and what the plan says it is.

This one table gives `values.yaml` with its comments, `values.schema.json`, and the numbers in the plain manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from deepseek.deploy.plan import DEVICE, DeployPlan
from deepseek.yaml_source import dump_yaml

_INT = {"type": "integer"}
_TEXT = {"type": "string"}
_SWITCH = {"type": "boolean"}
_QUANTITY = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


class Entry(NamedTuple):
    """One value: its dotted path, what it is for, its JSON schema."""

    path: str
    meaning: str
    schema: Mapping[str, Any]


ENTRIES = (
    Entry("image", "The image that `deepseek deploy docker` builds, with a tag or a digest.", _TEXT),
    Entry(
        "imagePullPolicy", "When the image is fetched.", {"type": "string", "enum": ["Always", "IfNotPresent", "Never"]}
    ),
    Entry("imagePullSecrets", "Secrets of a private registry: [{name: ...}].", {"type": "array"}),
    Entry("replicas", "Servers when it begins, and the fewest that autoscaling leaves.", {**_INT, "minimum": 1}),
    Entry("port", "REST, the page, probes and metrics.", {**_INT, "minimum": 1024, "maximum": 65535}),
    Entry("grpcPort", "gRPC; 0 serves none.", {**_INT, "minimum": 0, "maximum": 65535}),
    Entry("device", "Where the models run: cpu, cuda, cuda:1, auto.", {**_TEXT, "pattern": f"^({DEVICE.pattern})$"}),
    Entry("gpu", "GPUs of one server (nvidia.com/gpu); 0 for none.", {**_INT, "minimum": 0}),
    Entry("resources.cpu", "Cores that one server asks for. There is no limit: what is idle may be used.", _QUANTITY),
    Entry("resources.memory", "Memory of one server, asked for and at most.", _QUANTITY),
    Entry("threads", "Compute threads of one server: its cores, rounded up.", {**_INT, "minimum": 1}),
    Entry("drainSeconds", "How long running requests may go on when a server is stopped.", {**_INT, "minimum": 0}),
    Entry("apiKey.secret", "The Secret that holds the clients' API key.", {**_TEXT, "minLength": 1}),
    Entry("apiKey.key", "Under which key of it.", {**_TEXT, "minLength": 1}),
    Entry("redis.url", "A Redis for cached answers and sessions: redis://HOST:6379/0. Empty: none.", _TEXT),
    Entry("redis.secret", "A Secret whose key `url` is that address, with its password; goes before redis.url.", _TEXT),
    Entry("redis.port", "The port that the network policy lets out to Redis; 0 for none.", {**_INT, "minimum": 0}),
    Entry("model.claim", "A PersistentVolumeClaim with the models. Empty: they are in the image.", _TEXT),
    Entry("autoscaling.enabled", "Scale with the load (HorizontalPodAutoscaler).", _SWITCH),
    Entry("autoscaling.max", "The most servers.", {**_INT, "minimum": 1}),
    Entry("autoscaling.queue", "Requests that may wait at each server before more are started.", _TEXT),
    Entry("autoscaling.cpuPercent", "Use of the asked cores at which more are started.", {**_INT, "minimum": 1}),
    Entry("rollout.maxSurge", "Servers above the wanted number while a version changes.", _INT),
    Entry("rollout.maxUnavailable", "Servers below it.", _INT),
    Entry("disruptionBudget.enabled", "Let the cluster's upkeep stop one server at a time only.", _SWITCH),
    Entry("networkPolicy.enabled", "Close all but the server's ports, DNS and Redis.", _SWITCH),
    Entry("networkPolicy.from", "Who may connect (NetworkPolicy peers). Empty: everyone.", {"type": "array"}),
    Entry("nodeSelector", "Labels of the nodes to run on.", {"type": "object"}),
    Entry("tolerations", "Taints of nodes that are no hindrance.", {"type": "array"}),
    Entry("serviceMonitor.enabled", "Have the Prometheus operator scrape the servers.", _SWITCH),
    Entry("keda.enabled", "Scale by KEDA, on the queue in Prometheus; set autoscaling.enabled to false then.", _SWITCH),
    Entry("keda.prometheus", "Where KEDA asks Prometheus.", _TEXT),
)


def values_of(plan: DeployPlan) -> dict[str, Any]:
    """Return the chart's values as the plan has them, nested."""
    from deepseek.deploy.names import redis_port

    kept = plan.redis_secret or plan.redis
    return {
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": [],
        "replicas": plan.replicas,
        "port": plan.port,
        "grpcPort": plan.grpc_port,
        "device": plan.device,
        "gpu": plan.gpu,
        "resources": {"cpu": plan.cpu, "memory": plan.memory},
        "threads": plan.threads,
        "drainSeconds": plan.drain_seconds,
        "apiKey": {"secret": f"{plan.name}-api-key", "key": "api-key"},
        "redis": {
            "url": plan.redis or "",
            "secret": plan.redis_secret or "",
            "port": (redis_port(plan.redis) if plan.redis else 6379) if kept else 0,
        },
        "model": {"claim": plan.volume or ""},
        "autoscaling": {"enabled": True, "max": plan.max_replicas, "queue": "4", "cpuPercent": 70},
        # GPUs are seldom spare: the old server makes room for the new one there
        "rollout": {"maxSurge": 0 if plan.gpu else 1, "maxUnavailable": 1 if plan.gpu else 0},
        "disruptionBudget": {"enabled": True},
        "networkPolicy": {"enabled": True, "from": []},
        "nodeSelector": {},
        "tolerations": [],
        "serviceMonitor": {"enabled": False},
        "keda": {"enabled": False, "prometheus": "http://prometheus-operated.monitoring:9090"},
    }


def values_yaml(values: Mapping[str, Any]) -> str:
    """Return `values.yaml`: each value under what it is for."""
    lines = ["# Every value of the chart; values.schema.json says what may stand there.", ""]
    section = ""
    for entry in ENTRIES:
        head, _, leaf = entry.path.rpartition(".")
        if head and head != section:
            lines.append(f"{head}:")
        section = head
        indent = "  " if head else ""
        found: Any = values
        for key in entry.path.split("."):
            found = found[key]
        shown = dump_yaml({leaf: found}).strip()
        lines += [f"{indent}# {entry.meaning}", f"{indent}{shown}"]
    return "\n".join(lines) + "\n"


def values_schema() -> dict[str, Any]:
    """Return the JSON schema that Helm holds values against."""
    properties: dict[str, Any] = {}
    for entry in ENTRIES:
        head, _, leaf = entry.path.rpartition(".")
        place = properties
        if head:
            place = properties.setdefault(head, _section({}))["properties"]
        place[leaf] = {"description": entry.meaning, **entry.schema}
    properties["global"] = {"type": "object", "description": "What Helm hands to charts inside charts."}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_section(properties)}


def _section(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}
