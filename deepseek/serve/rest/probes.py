"""The probes, the metrics and the description of the interface. Not here: models (see `openai`, `kserve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest.json_bytes import dump_arrays
from deepseek.serve.rest.openapi import document
from deepseek.serve.rest.predict import Forms
from deepseek.serve.rest.reply import Reply, json_reply

if TYPE_CHECKING:
    from starlette.requests import Request

    from deepseek.serve.service import Service


class Probes:
    """The routes."""

    def __init__(self, service: Service, metrics: Metrics, forms: Forms) -> None:
        self._service = service
        self._metrics = metrics
        self._forms = forms

    async def health(self, request: Request) -> Reply:
        """Tell that the process is alive."""
        return json_reply({"status": "alive"})

    async def ready(self, request: Request) -> Reply:
        """Tell whether the models answered their golden samples; 503 until then."""
        ready = self._service.ready
        status = "ready" if ready else "stopping" if self._service.stopping else "not ready"
        return json_reply({"status": status, "models": self._service.states()}, status=200 if ready else 503)

    async def metrics(self, request: Request) -> Reply:
        """Return the metrics in Prometheus' text form."""
        return Reply(*self._metrics.render())

    async def openapi(self, request: Request) -> Reply:
        """Return the description of all routes, with the schemas of the models that are served now."""
        versions = {line["version"] for line in self._service.index() if line["state"] == "READY"}
        described = document(self._service.hosted.values(), versions, self._forms)
        return Reply(dump_arrays(described), "application/json")
