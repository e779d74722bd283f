"""The page's routes: its files, the models it offers, each model's form, and the dashboard's numbers.

Not here: answering instances; the page uses the same public routes as everyone else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.page.files import HEADERS, page_files
from deepseek.serve.page.numbers import numbers
from deepseek.serve.rest.json_bytes import dump_arrays
from deepseek.serve.rest.leases import lease
from deepseek.serve.rest.predict import Forms
from deepseek.serve.rest.reply import Reply, json_reply

if TYPE_CHECKING:
    from starlette.requests import Request

    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

Endpoint = Callable[["Request"], Awaitable[Reply]]


class Page:
    """The routes by path: `endpoints`, all of them for GET."""

    def __init__(self, service: Service, metrics: Metrics, forms: Forms) -> None:
        self._service = service
        self._metrics = metrics
        self._forms = forms
        self._files = page_files()
        files: dict[str, Endpoint] = dict.fromkeys(self._files, self.file)
        self.endpoints: dict[str, Endpoint] = {
            **files,
            "/page/models": self.models,
            "/page/model": self.form,
            "/page/numbers": self.numbers,
        }

    async def file(self, request: Request) -> Reply:
        """Return one of the page's files. The router lets only paths of the table come here."""
        file = self._files[request.scope["path"]]
        return Reply(file.body, file.content_type, headers=HEADERS)

    async def models(self, request: Request) -> Reply:
        """Return name, kind and versions of every model that is served."""
        found: dict[str, dict[str, Any]] = {}
        for one in self._service.status():
            entry = found.setdefault(one.name, {"name": one.name, "kind": one.kind, "versions": []})
            entry["kind"] = entry["kind"] or one.kind
            entry["versions"].append({"version": one.version, "state": one.state, "share": one.share})
        return json_reply({"models": list(found.values())})

    async def form(self, request: Request) -> Reply:
        """Return what a model takes and gives, its instances' schema, and an instance that can be sent."""
        asked = request.query_params
        with lease(self._service, asked.get("name"), asked.get("version")) as hosted:
            if hosted.kind == "text":
                told = {"name": hosted.name, "kind": "text", "max_length": hosted.model.max_length}
                return json_reply({**told, "version": hosted.version})
            return Reply(await asyncio.to_thread(self._described, hosted), "application/json")

    async def numbers(self, request: Request) -> Reply:
        """Return the numbers that the dashboard draws."""
        return json_reply(numbers(self._service, self._metrics))

    def _described(self, hosted: Hosted) -> bytes:
        from deepseek.serve.speech.model import can_stream

        form = self._forms.of(hosted)
        return dump_arrays(
            {
                "name": hosted.name,
                "kind": "tensor",
                "version": hosted.version,
                "takes": form.takes,
                "gives": form.gives,
                "schema": form.request_schema,
                "example": form.example(),
                "streams": hosted.bundle is not None and can_stream(hosted.bundle),
            }
        )
