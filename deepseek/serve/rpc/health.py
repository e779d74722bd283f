"""Health (`grpc.health.v1`) of the server, its services and each model, and reflection: both by gRPC's own packages.

Health is open to everyone; the names are those of the models, the services, and "" for the whole.
Source: GRPC Health Checking Protocol and GRPC Server Reflection Protocol, https://github.com/grpc/grpc/tree/master/doc
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.lazy import require
from deepseek.serve.rpc import messages
from deepseek.serve.rpc.calls import Call, Gate
from deepseek.serve.rpc.messages import GENERATION, INFERENCE, SPEECH
from deepseek.serve.rpc.protocol import Write, parse, received

if TYPE_CHECKING:
    from deepseek.serve.service import Service

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
"""The same messages under their later name, which newer clients ask for first."""
_POLL_SECONDS = 1.0
_MAX_BYTES = 1024
"""Of a request for health: it is a name."""


class Health:
    """Keeps the statuses in step with the service's models and answers Check and Watch."""

    def __init__(self, service: Service) -> None:
        require("grpc_health", "serve")
        from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
        from grpc_health.v1.health import aio  # type: ignore[import-untyped]

        self._service = service
        self._pb = health_pb2
        self._servicer = aio.HealthServicer()
        self._known: dict[str, int] = {}

    def handlers(self, gate: Gate) -> Mapping[str, Any]:
        """Return the handlers by path."""
        return {
            f"/{HEALTH}/Check": gate.unary(f"{HEALTH}/Check", self.check, is_open=True),
            f"/{HEALTH}/Watch": gate.server_stream(f"{HEALTH}/Watch", self.watch, is_open=True),
        }

    async def check(self, raw: bytes, call: Call) -> bytes:
        """Tell a status. Raises RequestError (404) for an unknown name."""
        request = self._parse(raw)
        if request.service not in self._known:
            raise RequestError("there is no model or service of this name", status=404, field="service")
        answer = self._pb.HealthCheckResponse(status=self._known[request.service])
        return answer.SerializeToString()  # type: ignore[no-any-return]

    async def watch(self, raw: bytes, call: Call, write: Write) -> None:
        """Tell a status and each change of it, until the client goes away."""
        await self._servicer.Watch(self._parse(raw), _Writer(write))

    async def follow(self) -> None:
        """Keep the statuses in step with the service for as long as this runs."""
        while True:
            await self.refresh()
            await asyncio.sleep(_POLL_SECONDS)

    async def refresh(self) -> None:
        """Look at the service and tell watchers what changed."""
        serving = self._pb.HealthCheckResponse.SERVING
        waiting = self._pb.HealthCheckResponse.NOT_SERVING
        ready = self._service.ready
        found = dict.fromkeys(("", INFERENCE, GENERATION), serving if ready else waiting)
        stopping = self._service.stopping
        for name, hosted in list(self._service.hosted.items()):
            found[name] = serving if hosted.state == "ready" and not stopping else waiting
        for name in self._known.keys() - found.keys():
            await self._servicer.set(name, self._pb.HealthCheckResponse.SERVICE_UNKNOWN)
        for name, status in found.items():
            if self._known.get(name) != status:
                await self._servicer.set(name, status)
        self._known = found

    async def leave(self) -> None:
        """Tell everyone that the server stops."""
        self._known = dict.fromkeys(self._known, self._pb.HealthCheckResponse.NOT_SERVING)
        await self._servicer.enter_graceful_shutdown()

    def _parse(self, raw: bytes) -> Any:
        if len(raw) > _MAX_BYTES:
            raise RequestError(
                "the name is too long", status=400, field="service", wanted="a model's or service's name"
            )
        return parse(self._pb.HealthCheckRequest, raw)


class _Writer:
    """What the health package needs of a call: messages written to it."""

    def __init__(self, write: Write) -> None:
        self._write = write

    async def write(self, message: Any) -> None:
        await self._write(message.SerializeToString())


def reflection_handlers(gate: Gate, idle_seconds: float) -> Mapping[str, Any]:
    """Return the handlers of reflection by path: a client finds services and messages without a .proto file."""
    require("grpc_reflection", "serve")
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
    from grpc_reflection.v1alpha.reflection import aio  # type: ignore[import-untyped]

    for module in (health_pb2, reflection_pb2):
        messages.pool().AddSerializedFile(module.DESCRIPTOR.serialized_pb)  # adding the same file again changes nothing
    servicer = aio.ReflectionServicer((INFERENCE, GENERATION, SPEECH, HEALTH, REFLECTION), messages.pool())

    async def answer(questions: AsyncIterator[bytes], call: Call, write: Write) -> None:
        async def parsed() -> AsyncIterator[Any]:
            async for raw in received(questions, idle_seconds):
                yield parse(reflection_pb2.ServerReflectionRequest, raw)

        async for message in servicer.ServerReflectionInfo(parsed(), None):
            await write(message.SerializeToString())

    return {
        f"/{name}/ServerReflectionInfo": gate.both_stream(f"{REFLECTION}/ServerReflectionInfo", answer)
        for name in (REFLECTION, _REFLECTION_V1)
    }
