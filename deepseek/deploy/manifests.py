"""A cluster's files: plain manifests for `kubectl apply`, or a Helm chart; both from the same trees.

Not here: what stands in them (see `workload`, `surroundings`, `values`).
"""

from __future__ import annotations

import json

from deepseek import __version__
from deepseek.deploy import surroundings, workload
from deepseek.deploy.pages import page
from deepseek.deploy.plan import DeployPlan
from deepseek.deploy.tree import Setting, Tree, resolve, template
from deepseek.deploy.values import values_of, values_schema, values_yaml
from deepseek.yaml_source import Plain, dump_yaml

KUBERNETES = "1.31"
"""The oldest version whose fields these are."""


def trees() -> dict[str, Tree]:
    """Return file name -> tree of every manifest that a chart holds."""
    return {
        "configmap.yaml": workload.configmap(),
        "deployment.yaml": workload.deployment(),
        "service.yaml": workload.service(),
        "autoscaler.yaml": surroundings.autoscaler(),
        "disruption-budget.yaml": surroundings.disruption_budget(),
        "network-policy.yaml": surroundings.network_policy(),
        "service-monitor.yaml": surroundings.service_monitor(),
        "keda.yaml": surroundings.scaled_object(),
    }


def kubernetes_files(plan: DeployPlan) -> dict[str, str]:
    """Return path -> text of plain manifests: `manifests/` to apply, `options/` for what not every cluster has."""
    setting = Setting(plan.name, plan.namespace, values_of(plan))
    files = {}
    if plan.namespace != "default":
        files["manifests/00-namespace.yaml"] = dump_yaml(resolve(surroundings.namespace(), setting))
    for name, tree in trees().items():
        found = resolve(tree, setting)
        if found is not None:
            files[f"manifests/{name}"] = dump_yaml(found)
        else:  # present only where it is switched on: an option
            files[f"options/{name}"] = dump_yaml(resolve(tree.tree, setting))
    files["options/prometheus-adapter.yaml"] = dump_yaml(surroundings.adapter_rules())
    return {**files, "README.md": page("kubernetes.md.j2", plan)}


def helm_files(plan: DeployPlan) -> dict[str, str]:
    """Return path -> text of a Helm chart (apiVersion v2)."""
    chart: Plain = {
        "apiVersion": "v2",
        "name": plan.name,
        "description": "Models behind REST and gRPC",
        "type": "application",
        "version": __version__,
        "appVersion": __version__,
        "kubeVersion": f">={KUBERNETES}.0-0",
    }
    files = {
        "Chart.yaml": dump_yaml(chart),
        "values.yaml": values_yaml(values_of(plan)),
        "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        "options/prometheus-adapter.yaml": dump_yaml(surroundings.adapter_rules()),
        ".helmignore": "README.md\noptions/\n.deepseek-deploy.json\n",
        "README.md": page("helm.md.j2", plan),
    }
    return {**files, **{f"templates/{name}": template(tree) for name, tree in trees().items()}}
