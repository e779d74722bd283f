"""A gRPC client of the server, for tests: `with rpc_of({...}) as client` or `RpcClient(server.port)`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np

from deepseek.serve.rpc import RpcLimits, RpcServer, messages
from deepseek.serve.service import Service

INFERENCE = "/inference.GRPCInferenceService/"
GENERATE = "/deepseek.v1.TextGeneration/Generate"
_FIELDS = {"FP32": "fp32_contents", "INT64": "int64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}


class Refused(NamedTuple):
    """How a call failed."""

    code: str
    sentence: str
    trailing: dict[str, str]


class RpcClient:
    """Calls methods with messages, or with any bytes; what fails is returned as `Refused`."""

    def __init__(self, port: int, *, key: str | None = None, channel: grpc.Channel | None = None) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = channel or grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self.metadata = () if key is None else (("authorization", f"Bearer {key}"),)

    def raw(self, path: str, message: bytes = b"", *, timeout: float = 10.0) -> bytes | Refused:
        try:
            return self.channel.unary_unary(path)(message, timeout=timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            return refused(error)

    def call(self, name: str, request: Any = None, **options: Any) -> Any:
        """Call a method of the inference service."""
        message = b"" if request is None else request.SerializeToString()
        answer = self.raw(INFERENCE + name, message, **options)
        response = messages.pool().FindServiceByName(messages.INFERENCE).methods_by_name[name].output_type.full_name
        return answer if isinstance(answer, Refused) else messages.message_class(response).FromString(answer)

    def stream(self, path: str, requests: Iterable[bytes] | bytes, answer: Any, *, timeout: float = 10.0) -> list[Any]:
        """Return all answers of a streaming method, and as the last one how it failed, if it did."""
        if isinstance(requests, bytes):
            call = self.channel.unary_stream(path)(requests, timeout=timeout, metadata=self.metadata)
        else:
            call = self.channel.stream_stream(path)(iter(requests), timeout=timeout, metadata=self.metadata)
        found: list[Any] = []
        try:
            found += (answer.FromString(raw) for raw in call)
        except grpc.RpcError as error:
            found.append(refused(error))
        return found

    def generate(self, request: Any, **options: Any) -> list[Any]:
        return self.stream(GENERATE, request.SerializeToString(), messages.GenerateResponse, **options)

    def infer_stream(self, requests: Iterable[Any], **options: Any) -> list[Any]:
        raw = [request if isinstance(request, bytes) else request.SerializeToString() for request in requests]
        return self.stream(INFERENCE + "ModelStreamInfer", raw, messages.ModelStreamInferResponse, **options)


def refused(error: grpc.RpcError) -> Refused:
    trailing = {name: value for name, value in error.trailing_metadata() or ()}
    return Refused(error.code().name, error.details(), trailing)


def infer_request(model: str, arrays: Mapping[str, tuple[str, Any]], *, raw: bool = True, **fields: Any) -> Any:
    """Return a ModelInferRequest; `arrays` gives a datatype and values for each input."""
    request = messages.ModelInferRequest(model_name=model, **fields)
    for name, (datatype, value) in arrays.items():
        array = np.asarray(value)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if not raw:
            getattr(tensor.contents, _FIELDS[datatype]).extend(array.ravel().tolist())
        elif datatype == "BYTES":
            request.raw_input_contents.append(
                b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel().tolist())
            )
        else:
            request.raw_input_contents.append(array.tobytes())
    return request


@contextlib.contextmanager
def rpc_of(
    models: Mapping[str, Any], limits: RpcLimits | None = None, **options: Any
) -> Iterator[tuple[RpcClient, RpcServer, Service]]:
    """Yield client, server and service, ready."""
    service = Service(models)
    service.start()
    service.verify()
    try:
        with RpcServer(service, limits=limits, **options) as server:
            client = RpcClient(server.port)
            try:
                yield client, server, service
            finally:
                client.channel.close()
    finally:
        service.close()
