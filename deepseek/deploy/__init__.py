"""Files that bring a server into containers and clusters: Docker, Compose, Kubernetes, Helm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "DeployPlan": "deepseek.deploy.plan:DeployPlan",
    "deploy": "deepseek.deploy.write:deploy",
    "plan_for": "deepseek.deploy.plan:plan_for",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.deploy.plan import DeployPlan as DeployPlan
    from deepseek.deploy.plan import plan_for as plan_for
    from deepseek.deploy.write import deploy as deploy
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
