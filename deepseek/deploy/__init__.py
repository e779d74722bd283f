"""Files that bring a server into containers and clusters: Docker, Compose, Kubernetes, Helm."""

from __future__ import annotations

from deepseek.lazy import lazy_names

_NAMES = {
    "DeployPlan": "deepseek.deploy.plan:DeployPlan",
    "deploy": "deepseek.deploy.write:deploy",
    "plan_for": "deepseek.deploy.plan:plan_for",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
