"""A Compose project: the server with Redis, Prometheus and Grafana, wired and closed.

Only two ports are seen outside, on `host`: the server's and Grafana's. No container runs as root, has a capability or
writes to its own file system. The key file that the server gets holds hashes; Prometheus has a key of its own.
Source: https://github.com/compose-spec/compose-spec/blob/main/spec.md. Not here: the image (see `docker`).
"""

from __future__ import annotations

from typing import Any

from deepseek.deploy.names import bracketed, cores, memory_bytes
from deepseek.deploy.pages import page
from deepseek.deploy.plan import MODEL_DIR, REDIS_URL, USER, DeployPlan
from deepseek.yaml_source import Plain, dump_yaml

REDIS, PROMETHEUS, GRAFANA = "redis:8.2.1-alpine", "prom/prometheus:v3.5.0", "grafana/grafana:12.1.1"
KEYS, SCRAPE_KEY, PASSWORD = "api_keys", "prometheus_key", "grafana_password"
"""Files in secrets/: hashes of all keys, the key that Prometheus sends, and Grafana's password."""
GRAFANA_PORT = 3000


def compose_files(plan: DeployPlan) -> dict[str, str]:
    """Return path -> text of the project, but for the image's build context."""
    from deepseek.serve.monitoring.alerts import alerts_yaml
    from deepseek.serve.monitoring.dashboard import dashboard_json

    source: dict[str, Plain] = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "access": "proxy",
        "isDefault": True,
    }
    provider: Plain = {
        "name": "deepseek",
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": "/etc/grafana/dashboards"},
    }
    return {
        "compose.yaml": dump_yaml(project(plan)),
        "make-secrets.sh": page("make-secrets.sh.j2", plan, keys=KEYS, scrape_key=SCRAPE_KEY, password=PASSWORD),
        "prometheus/prometheus.yml": dump_yaml(scraping(plan)),
        "prometheus/alerts.yml": alerts_yaml(),
        "grafana/provisioning/datasources/prometheus.yml": dump_yaml(
            {"apiVersion": 1, "datasources": [{**source, "url": "http://prometheus:9090", "editable": False}]}
        ),
        "grafana/provisioning/dashboards/deepseek.yml": dump_yaml({"apiVersion": 1, "providers": [provider]}),
        "grafana/dashboards/deepseek.json": dashboard_json(),
        "README.md": page("compose.md.j2", plan, grafana_port=GRAFANA_PORT, host=bracketed(plan.host)),
    }


def scraping(plan: DeployPlan) -> dict[str, Any]:
    """Return Prometheus' configuration."""
    job = {
        "job_name": "deepseek",
        "authorization": {"type": "Bearer", "credentials_file": f"/run/secrets/{SCRAPE_KEY}"},
        "static_configs": [{"targets": [f"server:{plan.port}"]}],
    }
    times = {"scrape_interval": "15s", "evaluation_interval": "15s"}
    return {"global": times, "rule_files": ["/etc/prometheus/alerts.yml"], "scrape_configs": [job]}


def project(plan: DeployPlan) -> dict[str, Any]:
    """Return `compose.yaml`."""
    services = {"server": _server(plan)}
    if plan.redis is None:
        services["redis"] = _redis()
    services |= {"prometheus": _prometheus(), "grafana": _grafana(plan)}
    return {
        "name": plan.name,
        "services": services,
        "networks": {"front": {}, "back": {"internal": True}},
        "volumes": {name: {} for name in ("redis", "prometheus", "grafana") if name in services},
        "secrets": {name: {"file": f"./secrets/{name}"} for name in (KEYS, SCRAPE_KEY, PASSWORD)},
    }


def _closed(user: str, cpu: str, memory: str) -> dict[str, Any]:
    """Return what every container is held to. `user`: whose the files in its image are."""
    return {
        "restart": "unless-stopped",
        "user": user,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "deploy": {"resources": {"limits": {"cpus": cpu, "memory": memory, "pids": 512}}},
    }


def _server(plan: DeployPlan) -> dict[str, Any]:
    closed = _closed(f"{USER}:{USER}", cores(plan.cpu), memory_bytes(plan.memory))
    if plan.gpu:
        device = {"driver": "nvidia", "count": plan.gpu, "capabilities": ["gpu"]}
        closed["deploy"]["resources"]["reservations"] = {"devices": [device]}
    ports = [plan.port, *([plan.grpc_port] if plan.grpc_port else [])]
    found = {
        "image": plan.image,
        "build": {"context": ".", "args": {"TORCH_INDEX": "${TORCH_INDEX:-}"}},
        **closed,
        "command": [*plan.command, "--api-keys", f"/run/secrets/{KEYS}"],
        "environment": {
            "OMP_NUM_THREADS": str(plan.threads),
            REDIS_URL: _literal(plan.redis or "redis://redis:6379/0"),
        },
        "secrets": [KEYS],
        "tmpfs": ["/tmp:mode=1777,size=1g,exec"],
        "ports": [f"{bracketed(plan.host)}:{port}:{port}" for port in ports],
        "networks": ["front", "back"],
        "stop_grace_period": f"{plan.drain_seconds + 15}s",
        "healthcheck": _check(
            "python", "-m", "deepseek.deploy.probe", f"http://127.0.0.1:{plan.port}/health", start="600s"
        ),
    }
    if plan.volume is not None:
        found["volumes"] = [{"type": "bind", "source": _literal(plan.volume), "target": MODEL_DIR, "read_only": True}]
    return found


def _redis() -> dict[str, Any]:
    options = ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"]
    return {
        "image": REDIS,
        **_closed("999:1000", "1", "512m"),
        "command": ["redis-server", *options],
        "volumes": ["redis:/data"],
        "networks": ["back"],
        "healthcheck": _check("redis-cli", "ping"),
    }


def _prometheus() -> dict[str, Any]:
    options = ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
    return {
        "image": PROMETHEUS,
        **_closed("65534:65534", "1", "1g"),
        "command": [*options, "--storage.tsdb.retention.time=15d"],
        "secrets": [SCRAPE_KEY],
        "volumes": ["./prometheus:/etc/prometheus:ro", "prometheus:/prometheus"],
        "networks": ["back"],
        "healthcheck": _check("wget", "-q", "--spider", "http://127.0.0.1:9090/-/healthy"),
    }


def _grafana(plan: DeployPlan) -> dict[str, Any]:
    return {
        "image": GRAFANA,
        **_closed("472", "1", "512m"),
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": f"/run/secrets/{PASSWORD}",
            "GF_AUTH_ANONYMOUS_ENABLED": "false",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
            "GF_PLUGINS_PREINSTALL_DISABLED": "true",
        },
        "secrets": [PASSWORD],
        "tmpfs": ["/tmp:mode=1777,size=64m"],
        "volumes": [
            "./grafana/provisioning:/etc/grafana/provisioning:ro",
            "./grafana/dashboards:/etc/grafana/dashboards:ro",
            "grafana:/var/lib/grafana",
        ],
        "ports": [f"{bracketed(plan.host)}:{GRAFANA_PORT}:{GRAFANA_PORT}"],
        "networks": ["front", "back"],
        "healthcheck": _check("wget", "-q", "--spider", f"http://127.0.0.1:{GRAFANA_PORT}/api/health"),
    }


def _check(*command: str, start: str = "30s") -> dict[str, Any]:
    times = {"interval": "15s", "timeout": "5s", "retries": 3, "start_period": start}
    return {"test": ["CMD", *command], **times}


def _literal(text: str) -> str:
    """Return text in which Compose sees no variables."""
    return text.replace("$", "$$")
