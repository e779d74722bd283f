"""The messages of the gRPC interface, made at first use from the .proto files beside this module.

They live in a pool of their own, so that another package's copy of the `inference` protocol in the same process is
no conflict. Not here: what they mean (see `inference`, `generation`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from deepseek.lazy import require

FILES = ("inference.proto", "text_generation.proto", "speech.proto")
INFERENCE = "inference.GRPCInferenceService"
GENERATION = "deepseek.v1.TextGeneration"
SPEECH = "deepseek.v1.SpeechRecognition"

_PACKAGES = {
    "inference": (
        "ServerLiveRequest",
        "ServerLiveResponse",
        "ServerReadyRequest",
        "ServerReadyResponse",
        "ModelReadyRequest",
        "ModelReadyResponse",
        "ServerMetadataRequest",
        "ServerMetadataResponse",
        "ModelMetadataRequest",
        "ModelMetadataResponse",
        "ModelInferRequest",
        "ModelInferResponse",
        "ModelStreamInferResponse",
        "RepositoryIndexRequest",
        "RepositoryIndexResponse",
        "RepositoryModelLoadRequest",
        "RepositoryModelLoadResponse",
        "RepositoryModelUnloadRequest",
        "RepositoryModelUnloadResponse",
    ),
    "deepseek.v1": (
        "GenerateRequest",
        "GenerateResponse",
        "StreamingRecognizeRequest",
        "StreamingRecognizeResponse",
    ),
}
_FULL_NAMES = {name: f"{package}.{name}" for package, names in _PACKAGES.items() for name in names}


@functools.cache
def pool() -> Any:
    """Return the pool with all descriptors. Raises MissingExtraError."""
    require("grpc_health", "serve")  # it brings protobuf
    from google.protobuf import descriptor_pool  # type: ignore[import-untyped]

    from deepseek.serve.rpc.proto_text import parse_proto

    made = descriptor_pool.DescriptorPool()
    for name in FILES:
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        made.AddSerializedFile(parse_proto(name, text).SerializeToString())
    return made


def message_class(name: str) -> Any:
    """Return the class of a message by its full name."""
    descriptor = pool().FindMessageTypeByName(name)
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor)


def __getattr__(name: str) -> Any:
    if name not in _FULL_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = message_class(_FULL_NAMES[name])
    return made
