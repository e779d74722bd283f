"""The manifests around the servers: how many there are, who may reach them, who watches them.

Sources: Kubernetes API reference (autoscaling/v2, policy/v1, networking.k8s.io/v1), the Prometheus operator's and
KEDA's references. Not here: the servers (see `workload`).
"""

from __future__ import annotations

from deepseek.deploy.tree import Named, Namespace, Tree, Value, When
from deepseek.deploy.workload import LABELS, metadata

QUEUE_METRIC = "deepseek_queue_depth"
"""What scaling follows: requests that wait, at each server and for each of its models."""
_DNS_PORT = 53


def namespace() -> Tree:
    """Return the namespace, which takes pods of the restricted kind only."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": Namespace(), "labels": labels}}


def autoscaler() -> Tree:
    """Return the autoscaler: the queue where the cluster serves that metric, and the cores in any case."""
    queue = {
        "type": "Pods",
        "pods": {
            "metric": {"name": QUEUE_METRIC},
            "target": {"type": "AverageValue", "averageValue": Value("autoscaling.queue")},
        },
    }
    cores = {
        "type": "Resource",
        "resource": {
            "name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": Value("autoscaling.cpuPercent")},
        },
    }
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": Named()},
        "minReplicas": Value("replicas"),
        "maxReplicas": Value("autoscaling.max"),
        "metrics": [queue, cores],
        "behavior": {
            "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}]},
            "scaleDown": {
                "stabilizationWindowSeconds": 300,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
            },
        },
    }
    return When(
        "autoscaling.enabled",
        {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata(), "spec": spec},
    )


def disruption_budget() -> Tree:
    """Return what keeps the cluster's upkeep from stopping several servers at once."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a server that never gets ready must not block a node's upkeep
        "selector": {"matchLabels": LABELS},
    }
    return When(
        "disruptionBudget.enabled",
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(), "spec": spec},
    )


def network_policy() -> Tree:
    """Return what closes everything but the server's ports to it, and DNS and Redis from it."""
    spec = {
        "podSelector": {"matchLabels": LABELS},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": When("networkPolicy.from", Value("networkPolicy.from")),
                "ports": [
                    {"port": "http", "protocol": "TCP"},
                    When("grpcPort", {"port": "grpc", "protocol": "TCP"}),
                ],
            }
        ],
        "egress": [
            {
                "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
                "ports": [{"port": _DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")],
            },
            When("redis.port", {"ports": [{"port": Value("redis.port"), "protocol": "TCP"}]}),
        ],
    }
    return When(
        "networkPolicy.enabled",
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(), "spec": spec},
    )


def service_monitor() -> Tree:
    """Return what has the Prometheus operator scrape every server, with the API key."""
    endpoint = {
        "port": "http",
        "path": "/metrics",
        "interval": "15s",
        "authorization": {
            "type": "Bearer",
            "credentials": {"name": Value("apiKey.secret"), "key": Value("apiKey.key")},
        },
    }
    spec = {"selector": {"matchLabels": LABELS}, "endpoints": [endpoint]}
    return When(
        "serviceMonitor.enabled",
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": metadata(), "spec": spec},
    )


def scaled_object() -> Tree:
    """Return scaling by KEDA, in the autoscaler's place: the same queue, asked of Prometheus."""
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": Value("keda.prometheus"),
            "query": Named("'})", before=f"sum({QUEUE_METRIC}{{service='"),
            "threshold": Value("autoscaling.queue"),
        },
    }
    spec = {
        "scaleTargetRef": {"name": Named()},
        "minReplicaCount": Value("replicas"),
        "maxReplicaCount": Value("autoscaling.max"),
        "cooldownPeriod": 300,
        "triggers": [trigger],
    }
    return When(
        "keda.enabled", {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata(), "spec": spec}
    )


def adapter_rules() -> Tree:
    """Return values for the chart of prometheus-adapter: they make the queue a metric that the autoscaler can ask."""
    rule = {
        "seriesQuery": f'{QUEUE_METRIC}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": QUEUE_METRIC, "as": QUEUE_METRIC},
        "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }
    return {"rules": {"custom": [rule]}}
