"""The HTTP interface: OpenAI's routes, probes, metrics and the page, as a Starlette application.

Not here: sockets and signals (see `server`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import DeepSeekError, RequestError, did_you_mean
from deepseek.lazy import require
from deepseek.serve.monitoring.metrics import Metrics, build_metrics
from deepseek.serve.rest import wire
from deepseek.serve.rest.answer import Answer
from deepseek.serve.rest.body import read_json
from deepseek.serve.rest.gateway import KNOWN_ROUTES, Gateway
from deepseek.serve.rest.reply import Reply, error_reply, json_reply
from deepseek.serve.rest.schema import ChatForm, CompletionForm, parse
from deepseek.serve.service import Service
from deepseek.serve.text.prepare import prepare, size

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

_LOG = logging.getLogger("deepseek.serve")
_PAGE = Path(__file__).parents[1] / "page" / "index.html"
_LONG = 4096
"""Characters from which on a prompt is tokenized beside the event loop, not in it."""


def create_app(
    service: Service,
    *,
    api_key: str | None = None,
    hosts: frozenset[str] | None = None,
    on_checked: Callable[[DeepSeekError | None], None] | None = None,
) -> Starlette:
    """Return the application. It starts and closes `service`, and calls `on_checked` after the golden samples.

    `hosts` are the names a Host header may carry (None: any). Raises MissingExtraError without the extra [serve].
    """
    require("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    metrics = build_metrics(service)
    rest = Rest(service, metrics)
    get, post = ["GET"], ["POST"]
    handlers: dict[Any, Any] = {HTTPException: _http_error}  # a Reply is an ASGI application, as a Response is
    app = Starlette(
        routes=[
            Route("/", rest.page, methods=get),
            Route("/health", rest.health, methods=get),
            Route("/ready", rest.ready, methods=get),
            Route("/metrics", rest.metrics, methods=get),
            Route("/v1/models", rest.models, methods=get),
            Route("/v1/models/{name}", rest.model, methods=get),
            Route("/v1/completions", rest.completions, methods=post),
            Route("/v1/chat/completions", rest.chat, methods=post),
        ],
        middleware=[
            Middleware(Gateway, api_key=api_key, hosts=hosts, metrics=metrics, retry_after=service.retry_after)
        ],
        exception_handlers=handlers,
        lifespan=lambda _: _running(service, on_checked),
    )
    app.router.redirect_slashes = False
    return app


@contextlib.asynccontextmanager
async def _running(service: Service, on_checked: Callable[[DeepSeekError | None], None] | None) -> AsyncIterator[None]:
    async def check() -> None:
        problem: DeepSeekError | None = None
        try:
            await asyncio.to_thread(service.verify)
        except DeepSeekError as error:
            _LOG.error("not ready: %s", error)
            problem = error
        if on_checked is not None:
            on_checked(problem)

    service.start()
    checking = asyncio.create_task(check())
    try:
        yield
    finally:
        checking.cancel()
        await asyncio.to_thread(service.close)


class Rest:
    """The routes."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._page_body = _PAGE.read_bytes()
        self._page_headers = {
            "content-security-policy": _content_policy(self._page_body.decode("utf-8")),
            "referrer-policy": "no-referrer",
            "x-frame-options": "DENY",
        }

    async def page(self, request: Request) -> Reply:
        """Return the page to try the models."""
        return Reply(self._page_body, "text/html; charset=utf-8", headers=self._page_headers)

    async def health(self, request: Request) -> Reply:
        """Tell that the process is alive."""
        return json_reply({"status": "alive"})

    async def ready(self, request: Request) -> Reply:
        """Tell whether every model answered its golden samples; 503 until then."""
        ready = self._service.ready
        states = {name: hosted.state for name, hosted in self._service.hosted.items()}
        status = "ready" if ready else "stopping" if self._service.stopping else "not ready"
        return json_reply({"status": status, "models": states}, status=200 if ready else 503)

    async def metrics(self, request: Request) -> Reply:
        """Return the metrics in Prometheus' text form."""
        return Reply(*self._metrics.render())

    async def models(self, request: Request) -> Reply:
        """Return the list of models."""
        cards = [
            wire.model_card(name, hosted.created, hosted.model.max_length)
            for name, hosted in self._service.hosted.items()
        ]
        return json_reply({"object": "list", "data": cards})

    async def model(self, request: Request) -> Reply:
        """Return one model of the list."""
        name = request.path_params["name"]
        hosted = self._service.hosted.get(name)
        if hosted is None:
            raise RequestError("this model does not exist here", field="model", status=404)
        return json_reply(wire.model_card(name, hosted.created, hosted.model.max_length))

    async def completions(self, request: Request) -> Answer:
        """Continue a text."""
        return await self._answer(parse(CompletionForm, await read_json(request)), wire.TextWire())

    async def chat(self, request: Request) -> Answer:
        """Answer in a conversation."""
        return await self._answer(parse(ChatForm, await read_json(request)), wire.ChatWire())

    async def _answer(self, form: CompletionForm | ChatForm, kind: wire.Wire) -> Answer:
        hosted = self._service.find(form.model)
        if size(form) > _LONG:
            jobs = await asyncio.to_thread(prepare, hosted.model, form)
        else:
            jobs = prepare(hosted.model, form)
        return Answer(hosted, jobs, kind, stream=form.stream, include_usage=form.include_usage, metrics=self._metrics)


async def _http_error(request: Request, error: Exception) -> Reply:
    """Give Starlette's own refusals (unknown path, wrong method) the form of all others."""
    status = int(getattr(error, "status_code", 500))
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        refusal = RequestError(f"{request.method} is not for this path", status=405, wanted=headers.get("Allow"))
    else:
        path = ascii(request.url.path[:64])
        refusal = RequestError(f"there is no {path} here", status=status, fix=did_you_mean(path, KNOWN_ROUTES))
    return error_reply(refusal, request.state.request_id, headers)


def _content_policy(page: str) -> str:
    """Return a Content-Security-Policy that allows exactly the page's own script and style."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(block.encode("utf-8")).digest()).decode() for block in blocks]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
