"""The messages of the gRPC interface, made at import from the .proto files beside this module.

They live in a pool of their own, so that another package's copy of the `inference` protocol in the same process is
no conflict. Not here: what they mean (see `inference`, `generation`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepseek.lazy import require
from deepseek.serve.rpc.proto_text import parse_proto

FILES = ("inference.proto", "text_generation.proto", "speech.proto")
INFERENCE = "inference.GRPCInferenceService"
GENERATION = "deepseek.v1.TextGeneration"
SPEECH = "deepseek.v1.SpeechRecognition"

require("grpc_health", "serve")  # it brings protobuf
from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped] # noqa: E402

POOL = descriptor_pool.DescriptorPool()
for _name in FILES:
    POOL.AddSerializedFile(
        parse_proto(_name, (Path(__file__).parent / _name).read_text(encoding="utf-8")).SerializeToString()
    )


def message_class(name: str) -> Any:
    """Return the class of a message by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


ServerLiveRequest = message_class("inference.ServerLiveRequest")
ServerLiveResponse = message_class("inference.ServerLiveResponse")
ServerReadyRequest = message_class("inference.ServerReadyRequest")
ServerReadyResponse = message_class("inference.ServerReadyResponse")
ModelReadyRequest = message_class("inference.ModelReadyRequest")
ModelReadyResponse = message_class("inference.ModelReadyResponse")
ServerMetadataRequest = message_class("inference.ServerMetadataRequest")
ServerMetadataResponse = message_class("inference.ServerMetadataResponse")
ModelMetadataRequest = message_class("inference.ModelMetadataRequest")
ModelMetadataResponse = message_class("inference.ModelMetadataResponse")
ModelInferRequest = message_class("inference.ModelInferRequest")
ModelInferResponse = message_class("inference.ModelInferResponse")
ModelStreamInferResponse = message_class("inference.ModelStreamInferResponse")
RepositoryIndexRequest = message_class("inference.RepositoryIndexRequest")
RepositoryIndexResponse = message_class("inference.RepositoryIndexResponse")
RepositoryModelLoadRequest = message_class("inference.RepositoryModelLoadRequest")
RepositoryModelLoadResponse = message_class("inference.RepositoryModelLoadResponse")
RepositoryModelUnloadRequest = message_class("inference.RepositoryModelUnloadRequest")
RepositoryModelUnloadResponse = message_class("inference.RepositoryModelUnloadResponse")
GenerateRequest = message_class("deepseek.v1.GenerateRequest")
GenerateResponse = message_class("deepseek.v1.GenerateResponse")
StreamingRecognizeRequest = message_class("deepseek.v1.StreamingRecognizeRequest")
StreamingRecognizeResponse = message_class("deepseek.v1.StreamingRecognizeResponse")
