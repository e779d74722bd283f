"""The HTTP interface as an ASGI application: routes, the gateway before them, start and end of the service.

Not here: what routes do (see `openai`, `kserve`, `generate`, `predict`, `probes`), sockets and signals (see `server`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from deepseek.errors import DeepSeekError, RequestError, did_you_mean
from deepseek.lazy import require
from deepseek.serve.monitoring.metrics import Metrics, build_metrics
from deepseek.serve.monitoring.watch import Watches
from deepseek.serve.orders import Orders
from deepseek.serve.page.routes import Page
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.conversation import Sessions
from deepseek.serve.rest.dispatch import Dispatcher, Way
from deepseek.serve.rest.door import Guard
from deepseek.serve.rest.gateway import Gateway
from deepseek.serve.rest.generate import Generate, generate
from deepseek.serve.rest.kserve import KServe
from deepseek.serve.rest.openai import OpenAI
from deepseek.serve.rest.paths import KNOWN_ROUTES
from deepseek.serve.rest.predict import Forms, Predict
from deepseek.serve.rest.probes import Probes
from deepseek.serve.rest.reply import ErrorReply, error_reply
from deepseek.serve.rest.response_cache import ResponseCache
from deepseek.serve.service import Service
from deepseek.serve.speech.session import Streams
from deepseek.serve.speech.websocket import PATH as SPEECH_PATH
from deepseek.serve.speech.websocket import SpeechSocket

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp

_LOG = logging.getLogger("deepseek.serve")


def create_app(
    service: Service,
    *,
    guard: Guard | None = None,
    cache: ResponseCache | None = None,
    sessions: Sessions | None = None,
    speech: Streams | None = None,
    metrics: Metrics | None = None,
    watches: Watches | None = None,
    allow_admin: bool = False,
    orders: Orders | None = None,
    on_checked: Callable[[DeepSeekError | None], None] | None = None,
) -> ASGIApp:
    """Return the application. It starts and closes `service`, and calls `on_checked` after the golden samples.

    `guard` says which hosts, keys and rates the gateway holds requests to; `cache` keeps answers that would be the same
    again, `sessions` conversations, `speech` counts and bounds streams of speech; with `allow_admin` clients may list,
    load and unload models, which `orders` has done. Without `metrics` those of the models alone are told; `watches`
    compare requests with the training data.
    Raises MissingExtraError without [serve].
    """
    require("starlette", "serve")
    from starlette.exceptions import HTTPException
    from starlette.middleware.exceptions import ExceptionMiddleware
    from starlette.routing import Router

    metrics = metrics or build_metrics(service)
    helpers = Helpers(metrics, cache, sessions, watches)
    forms = Forms()
    streams = speech or Streams(service)
    kserve = KServe(service, helpers, orders or Orders(service), allow_admin=allow_admin)
    predict = Predict(service, helpers, forms, guard.fetcher if guard is not None else None)
    handlers: dict[Any, Any] = {HTTPException: _http_error}  # a Reply is an ASGI application, as a Response is
    router = Router(
        routes=[
            *_probes(Probes(service, metrics, forms)),
            *(_get(path, endpoint) for path, endpoint in Page(service, metrics, forms).endpoints.items()),
            _socket(SPEECH_PATH, SpeechSocket(streams)),
            *_openai(OpenAI(service, helpers)),
            *_kserve(kserve, service, helpers),
        ],
        redirect_slashes=False,
        lifespan=lambda _: _running(service, on_checked),
    )
    others = ExceptionMiddleware(router, handlers=handlers)
    infer, predicted = Way(kserve.infer, kserve.at_once), Way(predict.predict, predict.at_once)
    dispatcher = Dispatcher(others, infer=infer, predict=predicted, at_once=cache is None)
    return Gateway(dispatcher, metrics=metrics, retry_after=service.retry_after, guard=guard)


def _probes(probes: Probes) -> list[BaseRoute]:
    return [
        _get("/health", probes.health),
        _get("/ready", probes.ready),
        _get("/metrics", probes.metrics),
        _get("/openapi.json", probes.openapi),
    ]


def _openai(openai: OpenAI) -> list[BaseRoute]:
    return [
        *(_post(f"/v1/models/{{name}}{version}:predict", _dispatched) for version in _VERSIONS),
        _get("/v1/models", openai.models),
        _get("/v1/models/{name}", openai.model),
        _post("/v1/completions", openai.completions),
        _post("/v1/chat/completions", openai.chat),
        _post("/v1/embeddings", openai.embeddings),
    ]


def _kserve(kserve: KServe, service: Service, helpers: Helpers) -> list[BaseRoute]:
    async def whole(request: Request) -> Generate:
        return await generate(service, request, helpers, stream=False)

    async def streamed(request: Request) -> Generate:
        return await generate(service, request, helpers, stream=True)

    routes = [
        _get("/v2", kserve.server),
        _get("/v2/health/live", kserve.live),
        _get("/v2/health/ready", kserve.ready),
        _post("/v2/repository/index", kserve.index),
        _post("/v2/repository/models/{name}/load", kserve.load),
        _post("/v2/repository/models/{name}/unload", kserve.unload),
    ]
    for version in _VERSIONS:
        model = f"/v2/models/{{name}}{version}"
        routes += [
            _get(model, kserve.model),
            _get(f"{model}/ready", kserve.model_ready),
            _post(f"{model}/infer", _dispatched),
            _post(f"{model}/generate", whole),
            _post(f"{model}/generate_stream", streamed),
        ]
    return routes


_VERSIONS = ("", "/versions/{version}")


def _get(path: str, endpoint: Callable[..., Any]) -> BaseRoute:
    from starlette.routing import Route

    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Callable[..., Any]) -> BaseRoute:
    from starlette.routing import Route

    return Route(path, endpoint, methods=["POST"])


def _socket(path: str, endpoint: Callable[..., Any]) -> BaseRoute:
    from starlette.routing import WebSocketRoute

    return WebSocketRoute(path, endpoint)


async def _dispatched(request: Request) -> ErrorReply:
    """Refuse a path that the dispatcher passed on: the route stands here so that other methods get their 405."""
    raise RequestError("there is no such path here", status=404)


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


async def _http_error(request: Request, error: Exception) -> ErrorReply:
    """Give Starlette's own refusals (unknown path, wrong method) the form of all others."""
    status = int(getattr(error, "status_code", 500))
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        refusal = RequestError(f"{request.method} is not for this path", status=405, wanted=headers.get("Allow"))
    else:
        path = ascii(request.url.path[:64])
        refusal = RequestError(f"there is no {path} here", status=status, fix=did_you_mean(path, KNOWN_ROUTES))
    return error_reply(refusal, request.state.request_id, headers)
