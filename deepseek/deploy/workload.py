"""The manifests of the servers themselves: Deployment, Service, ConfigMap.

The pods fit the "restricted" pod security standard: no root, no capabilities, a read-only file system but for /tmp.
Sources: Kubernetes API reference (apps/v1, v1), https://kubernetes.io/docs/concepts/security/pod-security-standards/.
Not here: how many there are and who may reach them (see `surroundings`).
"""

from __future__ import annotations

from deepseek.deploy.plan import API_KEY, MODEL_DIR, REDIS_URL, USER
from deepseek.deploy.tree import Named, Namespace, Plus, Text, Tree, Value, When

LABELS: Tree = {"app.kubernetes.io/name": "deepseek", "app.kubernetes.io/instance": Named()}
PRESTOP_SECONDS = 5
"""Between a pod's leaving the Service and SIGTERM: until then every node has heard of it, and no request is lost."""
_SPARE_SECONDS = 15
"""What ending may take above the drain: the wait before it, and closing."""


def metadata(suffix: str = "") -> Tree:
    """Return the metadata of a part."""
    return {"name": Named(suffix), "namespace": Namespace(), "labels": LABELS}


def configmap() -> Tree:
    """Return the settings that servers get as variables."""
    data = {"OMP_NUM_THREADS": Text("threads"), REDIS_URL: When("redis.url", Value("redis.url"))}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("-settings"), "data": data}


def service() -> Tree:
    """Return the address under which all servers are one. gRPC clients hold one connection: balance them on their
    side, or use a mesh."""
    ports = [
        {"name": "http", "port": Value("port"), "targetPort": "http", "protocol": "TCP", "appProtocol": "http"},
        When(
            "grpcPort",
            {
                "name": "grpc",
                "port": Value("grpcPort"),
                "targetPort": "grpc",
                "protocol": "TCP",
                "appProtocol": "kubernetes.io/h2c",
            },
        ),
    ]
    spec = {"type": "ClusterIP", "selector": LABELS, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(), "spec": spec}


def deployment() -> Tree:
    """Return the servers."""
    rollout = {"maxSurge": Value("rollout.maxSurge"), "maxUnavailable": Value("rollout.maxUnavailable")}
    # a pod reads its ConfigMap once: a change of what is in it changes these too, and so starts new pods
    settings = {"deepseek/threads": Text("threads"), "deepseek/redis": Text("redis.url", whole=False)}
    spec = {
        "replicas": Value("replicas"),
        "revisionHistoryLimit": 5,
        "selector": {"matchLabels": LABELS},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rollout},
        "template": {"metadata": {"labels": LABELS, "annotations": settings}, "spec": _pod()},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(), "spec": spec}


def _pod() -> Tree:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": LABELS},
    }
    claim = {"claimName": Value("model.claim"), "readOnly": True}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": When("imagePullSecrets", Value("imagePullSecrets")),
        "nodeSelector": When("nodeSelector", Value("nodeSelector")),
        "tolerations": When("tolerations", Value("tolerations")),
        "terminationGracePeriodSeconds": Plus("drainSeconds", _SPARE_SECONDS),
        "topologySpreadConstraints": [spread],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container()],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            When("model.claim", {"name": "models", "persistentVolumeClaim": claim}),
        ],
    }


def _container() -> Tree:
    return {
        "name": "deepseek",
        "image": Value("image"),
        "imagePullPolicy": Value("imagePullPolicy"),
        "command": ["deepseek-serve"],
        "args": [
            *("--model_dir", MODEL_DIR, "--port", Text("port"), "--host", "0.0.0.0"),
            *(When("grpcPort", "--grpc_port"), When("grpcPort", Text("grpcPort"))),
            *("--device", Value("device"), "--drain", Text("drainSeconds")),
        ],
        "envFrom": [{"configMapRef": {"name": Named("-settings")}}],
        "env": [
            {
                "name": API_KEY,
                "valueFrom": {"secretKeyRef": {"name": Value("apiKey.secret"), "key": Value("apiKey.key")}},
            },
            When(
                "redis.secret",
                {"name": REDIS_URL, "valueFrom": {"secretKeyRef": {"name": Value("redis.secret"), "key": "url"}}},
            ),
        ],
        "ports": [
            {"name": "http", "containerPort": Value("port"), "protocol": "TCP"},
            When("grpcPort", {"name": "grpc", "containerPort": Value("grpcPort"), "protocol": "TCP"}),
        ],
        # ready: golden samples answered; ten minutes for large models. Then a server that hangs is started anew
        "startupProbe": _probe("/ready", period=5, failures=120),
        "readinessProbe": _probe("/ready", period=5, failures=2),
        "livenessProbe": _probe("/health", period=10, failures=6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRESTOP_SECONDS)]}}},
        "resources": {
            "requests": {"cpu": Value("resources.cpu"), "memory": Value("resources.memory")},
            "limits": {"memory": Value("resources.memory"), "nvidia.com/gpu": When("gpu", Value("gpu"))},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            When("model.claim", {"name": "models", "mountPath": MODEL_DIR, "readOnly": True}),
        ],
    }


def _probe(path: str, *, period: int, failures: int) -> Tree:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
